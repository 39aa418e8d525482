"""The SQL of :mod:`.sqlite`, one constant per statement. A parameter that is used twice has a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .base import BROUGHT_BYTES, Filter

# --- sessions ---------------------------------------------------------------------------------------

OPEN_SESSION: Final = """
INSERT INTO session (token, lease_us, lease_boot, name, host, pid, started, boot_id, namespace)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
SESSION_NAME: Final = "SELECT name FROM session WHERE id = ? AND token = ?"
RENEW: Final = "UPDATE session SET lease_us = ? WHERE id = ? AND token = ?"
SESSION: Final = """
SELECT lease_us, lease_boot, name, host, pid, started, boot_id, namespace FROM session WHERE id = ?
"""
OTHER_SESSIONS: Final = "SELECT id FROM session WHERE id != ?"
DELETE_SESSION: Final = "DELETE FROM session WHERE id = ?"
SERVE: Final = "UPDATE session SET serves = ? WHERE id = ? AND token = ?"
SERVED: Final = """
SELECT s.id, d.value FROM session s CROSS JOIN json_each(s.serves) d
WHERE s.serves != '[]' AND d.value IN (SELECT value FROM json_each(?))
"""

# What is freed keeps its due time only if its last rest still says when it wants to be claimed; else it is due at once.
_LAST_SEQ: Final = "(SELECT ifnull(max(seq), 0) FROM journal WHERE instance = agenda.instance)"
_FREED: Final = f"""
UPDATE agenda SET session = NULL, due_us = CASE WHEN (
    SELECT state IN ('waiting', 'paused', 'held') AND image_seq = {_LAST_SEQ} FROM instance WHERE id = agenda.instance
) AND NOT EXISTS (SELECT 1 FROM inbox WHERE instance = agenda.instance) THEN due_us ELSE 0 END
"""  # noqa: S608  # a constant
_SUSPECTED: Final = f"""
, suspect = 1 + CASE suspect_seq WHEN {_LAST_SEQ} THEN suspect ELSE 0 END, suspect_seq = {_LAST_SEQ}
"""
FREE_SESSION: Final = _FREED + "WHERE session = ?"
TAKE_OVER: Final = _FREED + _SUSPECTED + "WHERE session = ?"
FREE: Final = _FREED + "WHERE session = ? AND instance = ?"

# --- writing ----------------------------------------------------------------------------------------

# How many of the rows just written continue a journal that this session holds. Each needs the entry before it, and the
# UNIQUE of (instance, seq) refuses a second one after that; so if all are counted, each was the next one.
ADMITTED: Final = """
SELECT count(*) FROM journal j
CROSS JOIN agenda a ON a.instance = j.instance
CROSS JOIN journal before ON before.instance = j.instance AND before.seq = j.seq - 1
CROSS JOIN session s ON s.id = a.session
WHERE j.id > ?1 AND s.id = ?2 AND s.token = ?3
"""
APPEND: Final = "INSERT INTO journal (instance, seq, at_us, took_us, facts, output) VALUES (?, ?, ?, ?, ?, ?)"
STANDING: Final = """
SELECT i.ended_us IS NOT NULL, i.replaced, a.session, (SELECT ifnull(max(seq), 0) FROM journal WHERE instance = i.id)
FROM instance i LEFT JOIN agenda a ON a.instance = i.id WHERE i.id = ?
"""
# Where a rest comes without entries, the last one came with an earlier change that showed nothing of it.
_REST_US: Final = "ifnull(?7, max(updated_us, ifnull((SELECT at_us FROM journal WHERE instance = ?1 AND seq = ?4), 0)))"
REST: Final = f"""
UPDATE instance SET state = ?2, image = ?3, image_seq = ?4, result_seq = ?5, definition = ifnull(?6, definition),
    updated_us = {_REST_US}, ended_us = CASE WHEN ?8 THEN {_REST_US} END
WHERE id = ?1
"""  # noqa: S608  # a constant
LEAVE: Final = """
INSERT INTO agenda (instance, definition, due_us, session, lane, avoid)
SELECT id, definition, CASE WHEN ?3 IS NULL AND EXISTS (SELECT 1 FROM inbox WHERE instance = ?1) THEN 0 ELSE ?2 END, ?3,
    lane, ifnull(?4, '')
FROM instance WHERE id = ?1
ON CONFLICT (instance) DO UPDATE
SET definition = excluded.definition, due_us = excluded.due_us, session = excluded.session, avoid = ifnull(?4, avoid)
"""
HOLD: Final = "UPDATE agenda SET session = ? WHERE instance = ?"
WAKE: Final = "UPDATE agenda SET due_us = 0 WHERE instance = ? AND session IS NULL AND due_us IS NOT 0"
END: Final = "DELETE FROM agenda WHERE instance = ?"
REPLACE: Final = "UPDATE instance SET replaced = 1 WHERE id = ?"
TAKE: Final = "DELETE FROM inbox WHERE instance = ? AND id = ?"
CLEAR_INBOX: Final = "DELETE FROM inbox WHERE instance = ?"
ANY_MAIL: Final = "SELECT 1 FROM inbox LIMIT 1"
HAS_MAIL: Final = "SELECT 1 FROM inbox WHERE instance = ? LIMIT 1"
KNOWN: Final = "SELECT 1 FROM received WHERE instance = ? AND message_id = ?"
RECEIVE: Final = "INSERT OR IGNORE INTO received (instance, message_id) VALUES (?, ?)"
POST: Final = """
INSERT INTO inbox (instance, kind, name, payload, at_us, message_id, trace) VALUES (?, ?, ?, ?, ?, ?, ?)
"""

NEW_INSTANCE: Final = """
INSERT INTO instance (instance_id, run, definition, state, created_us, updated_us, ended_us, input_digest,
    labels, trace, origin, lane, image, image_seq, result_seq)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
NEW_LABEL: Final = "INSERT INTO label (instance, key, value) VALUES (?, ?, ?)"
NEW_AGENDA: Final = "INSERT INTO agenda (instance, definition, due_us, session, lane) VALUES (?, ?, ?, ?, ?)"
LAST_RUN: Final = "SELECT id, run FROM instance WHERE instance_id = ? ORDER BY run DESC LIMIT 1"

DEFINITION_ID: Final = "SELECT id, plan FROM definition WHERE name = ? AND fingerprint = ?"
TUNED_DEFINITION: Final = "UPDATE definition SET plan = ? WHERE id = ?"
NEW_DEFINITION: Final = """
INSERT INTO definition (name, number, fingerprint, plan)
VALUES (?1, (SELECT count(*) + 1 FROM definition WHERE name = ?1), ?2, ?3)
"""
DEFINITION: Final = "SELECT name, fingerprint FROM definition WHERE id = ?"

# --- claiming ---------------------------------------------------------------------------------------

# What is due, of that what asked to avoid this session only after others had the time to take it.
_IS_DUE: Final = "definition = ?1 AND session IS NULL AND due_us IS NOT NULL AND due_us <= ?2"
_IS_FOR_US: Final = "(avoid = '' OR avoid != ?3 OR due_us <= ?2 - ?4)"
_OLDEST: Final = "ORDER BY due_us, instance LIMIT ?5"
DUE: Final = f"SELECT due_us, instance, lane FROM agenda WHERE {_IS_DUE} AND {_IS_FOR_US} {_OLDEST}"  # noqa: S608
# Where many are due in lanes that are full: the lanes, one seek each, and then what is due in those that are not.
LANES: Final = """
WITH RECURSIVE next (lane) AS (
    SELECT '' UNION ALL
    SELECT (
        SELECT min(lane) FROM agenda
        WHERE definition = ?1 AND session IS NULL AND due_us IS NOT NULL AND lane != '' AND lane > next.lane
    ) FROM next WHERE lane IS NOT NULL
)
SELECT lane FROM next WHERE lane IS NOT NULL
"""
DUE_IN_LANE: Final = f"""
SELECT due_us, instance, lane FROM agenda INDEXED BY agenda_lane
WHERE {_IS_DUE} AND lane != '' AND lane = ?6 AND {_IS_FOR_US} {_OLDEST}
"""  # noqa: S608
DUE_IN_NO_LANE: Final = f"""
SELECT due_us, instance, lane FROM agenda INDEXED BY agenda_due
WHERE {_IS_DUE} AND lane = ?6 AND {_IS_FOR_US} {_OLDEST}
"""  # noqa: S608
HOLDS: Final = "SELECT instance FROM agenda WHERE session = ?"
HELD: Final = """
SELECT d.name, a.lane FROM agenda a CROSS JOIN definition d ON d.id = a.definition WHERE a.session IS NOT NULL
"""

NEXT_DUE: Final = """
SELECT id, (SELECT min(due_us) FROM agenda WHERE definition = d.id AND session IS NULL AND due_us IS NOT NULL)
FROM definition d WHERE name = ? ORDER BY id
"""

# --- reading ----------------------------------------------------------------------------------------

_COLUMNS: Final = """
SELECT i.id, i.instance_id, i.run, d.name, d.fingerprint, i.state,
    (SELECT ifnull(max(seq), 0) FROM journal WHERE instance = i.id),
    i.created_us, i.updated_us, i.ended_us, a.due_us, i.input_digest, i.result_seq, a.session,
    (SELECT count(*) FROM inbox WHERE instance = i.id), i.labels, i.trace, i.definition, i.origin,
    a.suspect, a.suspect_seq, (SELECT count(*) FROM offer WHERE instance = i.id), i.lane
"""
_COUNT: Final = "SELECT count(*)"
_JOINS: Final = "CROSS JOIN definition d ON d.id = i.definition LEFT JOIN agenda a ON a.instance = i.id"
HEADER_LAST: Final = f"{_COLUMNS} FROM instance i {_JOINS} WHERE i.instance_id = ? ORDER BY i.run DESC LIMIT 1"
HEADER_OF: Final = f"{_COLUMNS} FROM instance i {_JOINS} WHERE i.id = ?"
IMAGE: Final = "SELECT image, image_seq FROM instance WHERE id = ?"
ENTRIES_AFTER: Final = f"""
SELECT seq, facts, CASE WHEN seq = 1 AND length(output) <= {BROUGHT_BYTES} THEN output END, at_us, took_us
FROM journal WHERE instance = ? AND seq > ? ORDER BY seq
"""  # noqa: S608  # a constant
HISTORY: Final = """
SELECT seq, facts, output, at_us, took_us FROM journal WHERE instance = ? AND seq > ? ORDER BY seq LIMIT ?
"""
MAIL: Final = "SELECT kind, name, payload, at_us, message_id, id, trace FROM inbox WHERE instance = ? ORDER BY id"
MAIL_OF_SESSION: Final = """
SELECT m.instance, m.kind, m.name, m.payload, m.at_us, m.message_id, m.id, m.trace
FROM inbox m CROSS JOIN agenda a ON a.instance = m.instance WHERE a.session = ? ORDER BY m.id
"""
VALUES: Final = """
SELECT seq, output FROM journal
WHERE instance = ? AND output IS NOT NULL AND seq IN (SELECT value FROM json_each(?))
"""
RECEIVED: Final = "SELECT message_id FROM received WHERE instance = ? ORDER BY message_id"
PLAN: Final = "SELECT plan FROM definition WHERE name = ? AND fingerprint = ?"
META: Final = "SELECT value FROM meta WHERE key = ?"
# All unfinished instances are looked at, and of each its few rows elsewhere, never the journal.
STUCK: Final = """
SELECT instance_id, reason FROM (SELECT i.id, i.instance_id, CASE
    WHEN i.replaced THEN 'a later run of it is missing'
    WHEN a.instance IS NULL THEN 'it has no row in the agenda'
    WHEN a.session IS NOT NULL THEN
        CASE WHEN NOT EXISTS (SELECT 1 FROM session WHERE id = a.session) THEN ?1 END
    WHEN a.due_us IS NOT NULL THEN
        CASE WHEN NOT EXISTS (SELECT 1 FROM definition WHERE id = i.definition AND id = a.definition)
            THEN 'it is due under a definition that is not its own' END
    WHEN i.state NOT IN ('waiting', 'paused', 'held') THEN ?2
    WHEN EXISTS (SELECT 1 FROM inbox WHERE instance = i.id) THEN ?3
    END AS reason
FROM instance i LEFT JOIN agenda a ON a.instance = i.id
WHERE (i.ended_us IS NULL OR i.state NOT IN ('completed', 'failed', 'cancelled')) AND NOT (
    i.replaced AND EXISTS (SELECT 1 FROM instance later WHERE later.instance_id = i.instance_id AND later.run > i.run)
))
WHERE reason IS NOT NULL ORDER BY id
"""

# --- upkeep -----------------------------------------------------------------------------------------

ENDED_BEFORE: Final = """
SELECT instance_id FROM instance WHERE ended_us IS NOT NULL AND NOT replaced AND (ended_us, id) < (?, ?)
ORDER BY ended_us, id LIMIT ?
"""
NEWEST_ENDED: Final = """
SELECT ended_us, id + 1 FROM instance WHERE ended_us IS NOT NULL AND NOT replaced
ORDER BY ended_us DESC, id DESC LIMIT 1 OFFSET ?
"""
LAST_ENDED: Final = """
SELECT ended_us IS NOT NULL FROM instance WHERE instance_id = ? ORDER BY run DESC LIMIT 1
"""
LABELS: Final = "SELECT id, labels FROM instance WHERE instance_id = ? AND labels IS NOT NULL"
REMOVE_LABEL: Final = "DELETE FROM label WHERE instance = ? AND key = ? AND value = ?"
REMOVE: Final = (
    "DELETE FROM journal WHERE instance IN (SELECT id FROM instance WHERE instance_id = ?)",
    "DELETE FROM inbox WHERE instance IN (SELECT id FROM instance WHERE instance_id = ?)",
    "DELETE FROM received WHERE instance IN (SELECT id FROM instance WHERE instance_id = ?)",
    "DELETE FROM instance WHERE instance_id = ?",
)


# --- lists ------------------------------------------------------------------------------------------

_OPEN: Final = frozenset({"pending", "running", "waiting", "paused", "held"})
_RARE: Final = frozenset({"failed", "cancelled", "paused", "held"})
# Word for word as in the index, so that it is used.
_IS_RARE: Final = "(i.state = 'failed' OR i.state = 'cancelled' OR i.state = 'paused' OR i.state = 'held')"


def page(where: Filter) -> tuple[str, list[object]]:
    """Return the query of a page of headers, newest first, and its bound values."""
    source, number, pieces, values = _found(where)
    if where.after is not None:
        pieces.append(f"{number} < ?")
        values.append(where.after)
    values.append(max(where.limit, 0))
    query = f"{_COLUMNS} FROM {source} {_JOINS} WHERE {' AND '.join(pieces)} ORDER BY {number} DESC LIMIT ?"
    return query, values


def count(where: Filter) -> tuple[str, list[object]]:
    """Return the query of how many match, and its bound values."""
    source, _, pieces, values = _found(where)
    condition = " AND ".join(pieces)
    return f"{_COUNT} FROM {source} CROSS JOIN definition d ON d.id = i.definition WHERE {condition}", values


def _found(where: Filter) -> tuple[str, str, list[str], list[object]]:
    """Return what to walk, the column that numbers instances there, and the conditions, made of fixed pieces."""
    pieces: list[str] = ["NOT i.replaced"]
    values: list[object] = []
    for piece, value in (
        ("d.name = ?", where.workflow or None),
        ("i.created_us >= ?", where.created_from_us),
        ("i.created_us < ?", where.created_to_us),
    ):
        if value is not None:
            pieces.append(piece)
            values.append(value)
    if where.states:
        pieces.append("i.state = ?" if len(where.states) == 1 else f"i.state IN ({_marks(where.states)})")
        values += where.states
    if where.unfinished:
        pieces.append("i.ended_us IS NULL")
    source, number = _way_in(where, pieces, values)
    return source, number, pieces, values


def _way_in(where: Filter, pieces: list[str], values: list[object]) -> tuple[str, str]:
    """Choose what is walked: the few that have a label or a rare state, else what has not ended, else all."""
    if labels := list(where.labels.items()):
        for label in labels[1:]:
            pieces.append("EXISTS (SELECT 1 FROM label WHERE key = ? AND value = ? AND instance = i.id)")
            values += label
        pieces.append("l.key = ? AND l.value = ?")
        values += labels[0]
        return "label l CROSS JOIN instance i ON i.id = l.instance", "l.instance"
    if where.states and _RARE.issuperset(where.states):
        pieces.append(_IS_RARE)
        return "instance i INDEXED BY instance_rare", "i.id"
    if where.unfinished or (where.states and _OPEN.issuperset(where.states)):
        return "agenda o CROSS JOIN instance i ON i.id = o.instance", "o.instance"
    return "instance i", "i.id"


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
