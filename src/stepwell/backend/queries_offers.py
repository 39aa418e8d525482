"""The SQL of :mod:`.sqlite_offers`, one constant per statement. A parameter that is used twice has a number."""

from __future__ import annotations

from typing import Final

OFFER: Final = """
INSERT INTO offer (instance, definition, rank_us, lives, tags, step, work)
SELECT instance, definition, ?3, ?4, ?5, ?6, ?7 FROM agenda
WHERE instance = ?1 AND session = ?2 AND NOT EXISTS (SELECT 1 FROM offer WHERE instance = ?1 AND step = ?6)
"""
OFFERED: Final = """
SELECT o.step, ifnull(s.name, '') FROM offer o LEFT JOIN session s ON s.id = o.session WHERE o.instance = ?
"""
HOLDS: Final = "SELECT 1 FROM agenda WHERE instance = ? AND session = ?"

# Offers are found by what they ask for: each set of tags that is in use costs one seek, and those of which this session
# lacks one are passed over as a whole, however many offers have them.
ANY_FREE: Final = "SELECT 1 FROM offer WHERE session IS NULL LIMIT 1"
TAGS: Final = """
WITH RECURSIVE next (tags) AS (
    SELECT (SELECT min(tags) FROM offer WHERE definition = ?1 AND session IS NULL) UNION ALL
    SELECT (SELECT min(tags) FROM offer WHERE definition = ?1 AND session IS NULL AND tags > next.tags)
    FROM next WHERE tags IS NOT NULL
)
SELECT tags FROM next WHERE tags IS NOT NULL
"""
FREE: Final = """
SELECT rank_us, id, instance FROM offer
WHERE definition = ? AND tags = ? AND session IS NULL ORDER BY rank_us, id LIMIT ?
"""
CLAIM: Final = "UPDATE offer SET session = ? WHERE id = ?"
CLAIMED: Final = "SELECT id, instance, step, work FROM offer WHERE id = ?"

SETTLE: Final = "DELETE FROM offer WHERE id = ? AND session = ? RETURNING instance"
HELD_BY: Final = "SELECT id, instance, step, lives, called_off FROM offer WHERE session = ? ORDER BY id"
HELD_ONE: Final = "SELECT id, instance, step, lives, called_off FROM offer WHERE id = ? AND session = ?"
FREE_AGAIN: Final = "UPDATE offer SET session = NULL, lives = ? WHERE id = ?"
REMOVE: Final = "DELETE FROM offer WHERE id = ?"

STANDING: Final = "SELECT id, session FROM offer WHERE instance = ? AND step = ?"
CALL_OFF: Final = "UPDATE offer SET called_off = 1 WHERE id = ?"
GOES_ON: Final = "SELECT 1 FROM offer WHERE id = ? AND session = ? AND NOT called_off"

REMOVE_ALL: Final = "DELETE FROM offer WHERE instance = ?"
MOVE: Final = "UPDATE offer SET definition = ? WHERE instance = ?"
STUCK: Final = """
SELECT instance_id, reason FROM (
    SELECT DISTINCT o.instance, ifnull(i.instance_id, '') AS instance_id, CASE
        WHEN a.instance IS NULL THEN ?1
        WHEN o.session IS NOT NULL AND NOT EXISTS (SELECT 1 FROM session WHERE id = o.session) THEN ?2
        END AS reason
    FROM offer o LEFT JOIN instance i ON i.id = o.instance LEFT JOIN agenda a ON a.instance = o.instance
) WHERE reason IS NOT NULL ORDER BY instance
"""
