"""The SQL of :mod:`.sqlite`, one constant per statement. A parameter that is used twice has a number."""

from __future__ import annotations

from typing import Final

from .base import Filter

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

# What is freed keeps its due time only if its last rest still says when it wants to be claimed; else it is due at once.
FREE_SESSION: Final = """
UPDATE agenda SET session = NULL, due_us = CASE WHEN (
    SELECT state IN ('waiting', 'paused', 'held')
       AND image_seq = (SELECT ifnull(max(seq), 0) FROM journal WHERE instance = agenda.instance)
    FROM instance WHERE id = agenda.instance
) AND NOT EXISTS (SELECT 1 FROM inbox WHERE instance = agenda.instance) THEN due_us ELSE 0 END
WHERE session = ?"""
FREE: Final = FREE_SESSION + " AND instance = ?"

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
REST: Final = """
UPDATE instance SET state = ?2, image = ?3, image_seq = ?4, result_seq = ?5, definition = ifnull(?6, definition),
    updated_us = ifnull(?7, updated_us), ended_us = CASE WHEN ?8 THEN ifnull(?7, updated_us) END
WHERE id = ?1
"""
LEAVE: Final = """
INSERT INTO agenda (instance, definition, due_us, session)
SELECT id, definition, CASE WHEN ?3 IS NULL AND EXISTS (SELECT 1 FROM inbox WHERE instance = ?1) THEN 0 ELSE ?2 END, ?3
FROM instance WHERE id = ?1
ON CONFLICT (instance) DO UPDATE
SET definition = excluded.definition, due_us = excluded.due_us, session = excluded.session
"""
HOLD: Final = "UPDATE agenda SET session = ? WHERE instance = ?"
END: Final = "DELETE FROM agenda WHERE instance = ?"
REPLACE: Final = "UPDATE instance SET replaced = 1 WHERE id = ?"
TAKE: Final = "DELETE FROM inbox WHERE instance = ? AND id = ?"
CLEAR_INBOX: Final = "DELETE FROM inbox WHERE instance = ?"
ANY_MAIL: Final = "SELECT 1 FROM inbox LIMIT 1"
HAS_MAIL: Final = "SELECT 1 FROM inbox WHERE instance = ? LIMIT 1"
KNOWN: Final = "SELECT 1 FROM received WHERE instance = ? AND message_id = ?"
RECEIVE: Final = "INSERT OR IGNORE INTO received (instance, message_id) VALUES (?, ?)"
POST: Final = "INSERT INTO inbox (instance, kind, name, payload, at_us, message_id) VALUES (?, ?, ?, ?, ?, ?)"

NEW_INSTANCE: Final = """
INSERT INTO instance (instance_id, run, definition, state, created_us, updated_us, ended_us, input_digest,
    labels, trace, image, image_seq)
VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
"""
NEW_AGENDA: Final = "INSERT INTO agenda (instance, definition, due_us, session) VALUES (?, ?, ?, ?)"
LAST_RUN: Final = "SELECT id, run FROM instance WHERE instance_id = ? ORDER BY run DESC LIMIT 1"

DEFINITION_ID: Final = "SELECT id FROM definition WHERE name = ? AND fingerprint = ?"
NEW_DEFINITION: Final = """
INSERT INTO definition (name, number, fingerprint, plan)
VALUES (?1, (SELECT count(*) + 1 FROM definition WHERE name = ?1), ?2, ?3)
"""
DEFINITION: Final = "SELECT name, fingerprint FROM definition WHERE id = ?"

# --- claiming ---------------------------------------------------------------------------------------

DUE: Final = """
SELECT due_us, instance FROM agenda
WHERE definition = ? AND session IS NULL AND due_us IS NOT NULL AND due_us <= ? ORDER BY due_us, instance LIMIT ?
"""

# --- reading ----------------------------------------------------------------------------------------

HEADER: Final = """
SELECT i.id, i.instance_id, i.run, d.name, d.fingerprint, i.state,
    (SELECT ifnull(max(seq), 0) FROM journal WHERE instance = i.id),
    i.created_us, i.updated_us, i.ended_us, a.due_us, i.input_digest, i.result_seq, a.session,
    (SELECT count(*) FROM inbox WHERE instance = i.id), i.labels, i.trace
FROM instance i JOIN definition d ON d.id = i.definition LEFT JOIN agenda a ON a.instance = i.id
"""
HEADER_LAST: Final = HEADER + "WHERE i.instance_id = ? ORDER BY i.run DESC LIMIT 1"
HEADER_OF: Final = HEADER + "WHERE i.id = ?"
COUNT: Final = "SELECT count(*) FROM instance i JOIN definition d ON d.id = i.definition "
IMAGE: Final = "SELECT image, image_seq FROM instance WHERE id = ?"
ENTRIES_AFTER: Final = """
SELECT seq, facts, NULL, at_us, took_us FROM journal WHERE instance = ? AND seq > ? ORDER BY seq
"""
HISTORY: Final = """
SELECT seq, facts, output, at_us, took_us FROM journal WHERE instance = ? AND seq > ? ORDER BY seq LIMIT ?
"""
MAIL: Final = "SELECT kind, name, payload, at_us, message_id, id FROM inbox WHERE instance = ? ORDER BY id"
MAIL_OF_SESSION: Final = """
SELECT m.instance, m.kind, m.name, m.payload, m.at_us, m.message_id, m.id
FROM inbox m CROSS JOIN agenda a ON a.instance = m.instance WHERE a.session = ? ORDER BY m.id
"""
VALUES: Final = """
SELECT seq, output FROM journal
WHERE instance = ? AND output IS NOT NULL AND seq IN (SELECT value FROM json_each(?))
"""
PLAN: Final = "SELECT plan FROM definition WHERE name = ? AND fingerprint = ?"
META: Final = "SELECT value FROM meta WHERE key = ?"
STUCK: Final = """
SELECT i.instance_id, a.session FROM instance i LEFT JOIN agenda a ON a.instance = i.id
WHERE i.ended_us IS NULL AND NOT i.replaced AND (
    a.session IS NULL AND a.due_us IS NULL AND i.state NOT IN ('waiting', 'paused', 'held')
    OR a.session IS NOT NULL AND NOT EXISTS (SELECT 1 FROM session WHERE id = a.session)
)
ORDER BY i.id
"""

# --- upkeep -----------------------------------------------------------------------------------------

ENDED_BEFORE: Final = """
SELECT instance_id FROM instance WHERE ended_us IS NOT NULL AND ended_us < ? AND NOT replaced ORDER BY ended_us, id
LIMIT ?
"""
LAST_ENDED: Final = """
SELECT ended_us IS NOT NULL FROM instance WHERE instance_id = ? ORDER BY run DESC LIMIT 1
"""
REMOVE: Final = (
    "DELETE FROM journal WHERE instance IN (SELECT id FROM instance WHERE instance_id = ?)",
    "DELETE FROM inbox WHERE instance IN (SELECT id FROM instance WHERE instance_id = ?)",
    "DELETE FROM received WHERE instance IN (SELECT id FROM instance WHERE instance_id = ?)",
    "DELETE FROM instance WHERE instance_id = ?",
)


def matching(where: Filter) -> tuple[str, list[object]]:
    """Return the WHERE clause of a filter, made of fixed pieces, and its bound values."""
    pieces: list[str] = ["NOT i.replaced"]
    values: list[object] = []
    if where.states:
        pieces.append(f"i.state IN ({', '.join('?' * len(where.states))})")
        values += where.states
    for piece, value in (
        ("d.name = ?", where.workflow or None),
        ("i.created_us >= ?", where.created_from_us),
        ("i.created_us < ?", where.created_to_us),
    ):
        if value is not None:
            pieces.append(piece)
            values.append(value)
    for key, text in where.labels.items():
        pieces.append("EXISTS (SELECT 1 FROM json_each(i.labels) WHERE key = ? AND value = ?)")
        values += (key, text)
    if where.unfinished:
        pieces.append("i.id IN (SELECT instance FROM agenda)")
    return " AND ".join(pieces), values
