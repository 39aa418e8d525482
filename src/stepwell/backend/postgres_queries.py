"""The SQL of sessions, instances, journals and inboxes in PostgreSQL, one constant per statement.

``@name`` is a table of ours, ``$n`` a parameter; see :mod:`.postgres_lines`. Where one statement reads what it has
waited for, remember that it sees other tables as they were when it began: only the row that it waited for is new. So
what two writers must agree on stands in one row (``agenda.mail``), or is asked in a statement of its own.
"""

from __future__ import annotations

from typing import Final

from .base import BROUGHT_BYTES

# --- sessions ---------------------------------------------------------------------------------------

OPEN_SESSION: Final = """
INSERT INTO @session (token, lease_until, name, host, pid, started, boot_id, namespace)
VALUES ($1, clock_timestamp() + $2 * interval '1 microsecond', $3, $4, $5, $6, $7, $8)
ON CONFLICT (token) DO UPDATE SET lease_until = excluded.lease_until RETURNING id
"""
RENEW: Final = """
UPDATE @session SET lease_until = clock_timestamp() + $3 * interval '1 microsecond' WHERE id = $1 AND token = $2
RETURNING id
"""
SESSION_NAME: Final = "SELECT name FROM @session WHERE id = $1 AND token = $2"
LOCK_SESSION: Final = "SELECT name FROM @session WHERE id = $1 AND token = $2 FOR KEY SHARE"
"""Keeps the session from being ended until this transaction is; renewing it goes on meanwhile."""

PROCESS: Final = "SELECT name, host, pid, started, boot_id, namespace FROM @session WHERE id = $1"
LOCK_TO_END: Final = "SELECT id FROM @session WHERE id = $1 AND token = $2 FOR UPDATE"
LOCK_IF_OVER: Final = """
SELECT id FROM @session WHERE id = $1 AND ($2 OR lease_until <= clock_timestamp()) FOR UPDATE
"""
"""The time is read again if the row had to be waited for and was renewed meanwhile."""
SERVE: Final = "UPDATE @session SET serves = $3 WHERE id = $1 AND token = $2 RETURNING id"

_PARKED: Final = """a.mail = 0 AND (
    SELECT i.state IN ('waiting', 'paused', 'held')
       AND i.image_seq = (SELECT coalesce(max(j.seq), 0) FROM @journal j WHERE j.instance = i.id)
    FROM @instance i WHERE i.id = a.instance)"""
# What is freed keeps its due time only if its last rest still says when it wants to be claimed; else it is due at once.
_FREE: Final = f"SET session = NULL, nonce = 0, due_us = CASE WHEN {_PARKED} THEN a.due_us ELSE 0 END"
FREE_SESSION: Final = f"UPDATE @agenda a {_FREE} WHERE a.session = $1"  # a constant
SUSPECT: Final = """
UPDATE @instance i SET suspect = CASE WHEN i.suspect_seq = l.seq THEN i.suspect ELSE 0 END + 1, suspect_seq = l.seq
FROM @agenda a CROSS JOIN LATERAL (
    SELECT coalesce(max(j.seq), 0) AS seq FROM @journal j WHERE j.instance = a.instance
) l WHERE a.session = $1 AND i.id = a.instance
"""
DELETE_SESSION: Final = "DELETE FROM @session WHERE id = $1"

RELEASE: Final = f"""
WITH me AS MATERIALIZED (SELECT id FROM @session WHERE id = $1 AND token = $2 FOR KEY SHARE),
freed AS (
    UPDATE @agenda a {_FREE} FROM me WHERE a.session = me.id AND a.instance = ANY($3) RETURNING a.instance
)
SELECT (SELECT count(*) FROM me), (SELECT count(*) FROM freed)
"""  # noqa: S608  # a constant

# --- steps ------------------------------------------------------------------------------------------

# Whether all changes are admitted is one number, counted before anything is written: an instance counts if the session
# that is locked here holds it, and the journal ends at its base. If another writes the same seq at the same moment, the
# primary key refuses one of the two. Each is asked by a subquery of its own and not by a join, so that the plan is two
# steps down an index whatever is known of the tables when it is made. Nothing written means: not admitted, ask why.
STEP: Final = """
WITH me AS MATERIALIZED (SELECT id FROM @session WHERE id = $1 AND token = $2 FOR KEY SHARE)
INSERT INTO @journal (instance, seq, at_us, took_us, facts, output)
SELECT $3::bigint, $4::bigint, $5::bigint, $6::bigint, $7::bytea, $8::bytea FROM me
WHERE (SELECT a.session FROM @agenda a WHERE a.instance = $3) = me.id
  AND (SELECT j.seq FROM @journal j WHERE j.instance = $3 ORDER BY j.seq DESC LIMIT 1) = $4 - 1
"""
_ADMIT: Final = """
WITH me AS MATERIALIZED (SELECT id FROM @session WHERE id = $1 AND token = $2 FOR KEY SHARE),
ok AS MATERIALIZED (
    SELECT count(*) AS n
    FROM me CROSS JOIN (SELECT unnest($3::bigint[]) AS instance, unnest($4::bigint[]) AS base OFFSET 0) c
    WHERE (SELECT a.session FROM @agenda a WHERE a.instance = c.instance) = me.id
      AND (SELECT j.seq FROM @journal j WHERE j.instance = c.instance ORDER BY j.seq DESC LIMIT 1) = c.base
)"""
_APPEND_ALL: Final = """
    INSERT INTO @journal (instance, seq, at_us, took_us, facts, output)
    SELECT unnest($6::bigint[]), unnest($7::bigint[]), unnest($8::bigint[]), unnest($9::bigint[]),
           unnest($10::bytea[]), unnest($11::bytea[])
    FROM ok WHERE ok.n = $5::bigint
"""
STEPS: Final = _ADMIT + _APPEND_ALL
RESTS: Final = f"""{_ADMIT}, new AS ({_APPEND_ALL}), taken AS (
    DELETE FROM @inbox m USING ok, unnest($12::bigint[], $13::bigint[]) t(instance, id)
    WHERE ok.n = $5 AND m.id = t.id AND m.instance = t.instance RETURNING m.instance
), fewer AS (
    SELECT instance, count(*)::integer AS n FROM taken GROUP BY instance
), away AS (
    DELETE FROM @offer o USING ok WHERE ok.n = $5 AND o.instance = ANY($14::bigint[])
), ended AS (
    DELETE FROM @agenda a USING ok WHERE ok.n = $5 AND a.instance = ANY($14) RETURNING a.instance
), parked AS (
    UPDATE @agenda a SET mail = a.mail - coalesce(f.n, 0), avoid = r.avoid, nonce = 0,
        session = CASE WHEN r.keep = 1 THEN a.session END,
        due_us = CASE WHEN r.keep = 0 AND a.mail > coalesce(f.n, 0) THEN 0 ELSE r.due_us END
    FROM ok, unnest($15::bigint[], $16::bigint[], $17::bigint[], $18::bytea[]) r(instance, due_us, keep, avoid)
    LEFT JOIN fewer f ON f.instance = r.instance
    WHERE ok.n = $5 AND a.instance = r.instance RETURNING a.instance, a.session, a.mail
), going AS (
    UPDATE @agenda a SET mail = a.mail - f.n FROM fewer f
    WHERE a.instance = f.instance AND f.instance <> ALL($14) AND f.instance <> ALL($15)
), rested AS (
    UPDATE @instance i SET state = r.state, image = r.image, image_seq = r.seq, result_seq = r.result_seq,
        updated_us = r.at_us, ended_us = CASE WHEN r.ended = 1 THEN r.at_us END, nonce = $19
    FROM (SELECT instance FROM parked UNION ALL SELECT instance FROM ended) x
    JOIN unnest($20::bigint[], $21::text[], $22::bytea[], $23::bigint[], $24::bigint[], $25::bigint[], $26::bigint[])
        r(instance, state, image, seq, result_seq, at_us, ended) ON r.instance = x.instance
    WHERE i.id = r.instance
)
SELECT n, (SELECT array_agg(instance) FROM parked WHERE session IS NULL AND mail > 0) FROM ok
"""  # noqa: S608  # a constant

# --- one change at a time ---------------------------------------------------------------------------

LOCK_AGENDA: Final = "SELECT 1 FROM @agenda WHERE instance = ANY($1) ORDER BY instance FOR NO KEY UPDATE"
LOCK_INSTANCE: Final = "SELECT 1 FROM @instance WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE"
ENDS: Final = """
SELECT a.instance, a.session, (SELECT j.seq FROM @journal j WHERE j.instance = a.instance ORDER BY j.seq DESC LIMIT 1)
FROM @agenda a WHERE a.instance = ANY($1)
"""
STANDING: Final = """
SELECT i.ended_us IS NOT NULL, i.replaced, a.session,
    (SELECT coalesce(max(j.seq), 0) FROM @journal j WHERE j.instance = i.id), i.nonce
FROM @instance i LEFT JOIN @agenda a ON a.instance = i.id WHERE i.id = $1
"""
APPEND: Final = """
INSERT INTO @journal (instance, seq, at_us, took_us, facts, output)
SELECT $1, unnest($2::bigint[]), unnest($3::bigint[]), unnest($4::bigint[]), unnest($5::bytea[]), unnest($6::bytea[])
"""
SAME_ENTRY: Final = """
SELECT 1 FROM @journal WHERE instance = $1 AND seq = $2 AND at_us = $3 AND facts = $4
   AND output IS NOT DISTINCT FROM $5::bytea
"""
TAKE: Final = "DELETE FROM @inbox WHERE instance = $1 AND id = ANY($2)"
LESS_MAIL: Final = "UPDATE @agenda SET mail = (SELECT count(*) FROM @inbox WHERE instance = $1) WHERE instance = $1"
CLEAR_INBOX: Final = "DELETE FROM @inbox WHERE instance = $1"
HAS_MAIL: Final = "SELECT 1 FROM @inbox WHERE instance = $1 LIMIT 1"
# Where a rest comes without entries, the last one came with an earlier change that showed nothing of it.
_REST_US: Final = """coalesce($7::bigint, greatest(updated_us,
    coalesce((SELECT at_us FROM @journal j WHERE j.instance = $1 AND j.seq = $4), 0)))"""
REST: Final = f"""
UPDATE @instance SET state = $2, image = $3, image_seq = $4, result_seq = $5, nonce = $9,
    definition = coalesce($6::bigint, definition), updated_us = {_REST_US},
    suspect = CASE WHEN $8 THEN 0 ELSE suspect END,
    ended_us = CASE WHEN $8 THEN {_REST_US} END
WHERE id = $1
"""  # noqa: S608  # a constant
LEAVE: Final = """
INSERT INTO @agenda AS a (instance, definition, due_us, session, mail, lane, avoid)
SELECT i.id, i.definition, CASE WHEN $3::bigint IS NULL AND m.n > 0 THEN 0 ELSE $2::bigint END, $3::bigint, m.n,
    i.lane, coalesce($4::bytea, '')
FROM @instance i CROSS JOIN (SELECT count(*)::integer AS n FROM @inbox WHERE instance = $1) m WHERE i.id = $1
ON CONFLICT (instance) DO UPDATE SET definition = excluded.definition, due_us = excluded.due_us, nonce = 0,
    session = excluded.session, mail = excluded.mail,
    avoid = CASE WHEN $4::bytea IS NULL THEN a.avoid ELSE excluded.avoid END
"""
HOLD: Final = "UPDATE @agenda SET session = $1 WHERE instance = $2"
END: Final = "DELETE FROM @agenda WHERE instance = $1"
REPLACE: Final = "UPDATE @instance SET replaced = true WHERE id = $1"

# --- messages ---------------------------------------------------------------------------------------

KNOWN: Final = "SELECT 1 FROM @received WHERE instance = $1 AND message_id = ANY($2) LIMIT 1"
RECEIVE: Final = """
INSERT INTO @received (instance, message_id) SELECT $1, unnest($2::bytea[]) ON CONFLICT DO NOTHING RETURNING 1
"""
MORE_MAIL: Final = "UPDATE @agenda SET mail = mail + 1 WHERE instance = $1 AND session = $2 RETURNING instance"
TELL: Final = """
UPDATE @agenda SET mail = mail + 1, due_us = CASE WHEN session IS NULL THEN 0 ELSE due_us END WHERE instance = $1
RETURNING instance
"""
POST: Final = """
INSERT INTO @inbox (instance, kind, name, payload, at_us, message_id, trace) VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
_MESSAGE: Final = "m.kind, m.name, m.payload, m.at_us, m.message_id, m.id, m.trace"
MAIL_OF_SESSION: Final = f"""
SELECT m.instance, {_MESSAGE} FROM @agenda a JOIN @inbox m ON m.instance = a.instance
WHERE a.session = $1 AND a.mail > 0 ORDER BY m.id
"""  # noqa: S608  # a constant
RECEIVED: Final = "SELECT message_id FROM @received WHERE instance = $1 ORDER BY message_id"

# --- new instances ----------------------------------------------------------------------------------

NEW_NUMBERS: Final = """
SELECT n.place, nextval($2::regclass) FROM (
    SELECT u.place FROM unnest($1::bytea[]) WITH ORDINALITY u(instance_id, place)
    WHERE NOT EXISTS (SELECT 1 FROM @instance i WHERE i.instance_id = u.instance_id AND NOT i.replaced)
    ORDER BY u.place OFFSET 0
) n
"""
CREATE: Final = """
WITH me AS MATERIALIZED (SELECT id FROM @session WHERE id = $1 AND token = $2 FOR KEY SHARE),
new AS MATERIALIZED (
    INSERT INTO @instance (id, instance_id, earlier, run, definition, state, created_us, updated_us, ended_us,
        input_digest, labels, trace, origin, lane, image, image_seq, result_seq, nonce)
    OVERRIDING SYSTEM VALUE
    SELECT n.*, $3 FROM (SELECT unnest($4::bigint[]), unnest($5::bytea[]), unnest($6::bigint[]), unnest($7::bigint[]),
        unnest($8::bigint[]), unnest($9::text[]), unnest($10::bigint[]), unnest($11::bigint[]), unnest($12::bigint[]),
        unnest($13::bytea[]), unnest($14::bytea[]), unnest($15::bytea[]), unnest($16::bytea[]), unnest($17::bytea[]),
        unnest($18::bytea[]), unnest($19::bigint[]), unnest($20::bigint[])) n
    WHERE $1::bigint = 0 OR EXISTS (SELECT 1 FROM me)
    ON CONFLICT (instance_id) WHERE NOT replaced DO NOTHING RETURNING id
), entries AS (
    INSERT INTO @journal (instance, seq, at_us, took_us, facts, output)
    SELECT * FROM (SELECT unnest($21::bigint[]) AS instance, unnest($22::bigint[]), unnest($23::bigint[]),
        unnest($24::bigint[]), unnest($25::bytea[]), unnest($26::bytea[])) e
    WHERE e.instance IN (SELECT id FROM new)
), due AS (
    INSERT INTO @agenda (instance, definition, due_us, session, lane)
    SELECT * FROM (SELECT unnest($27::bigint[]) AS instance, unnest($28::bigint[]), unnest($29::bigint[]),
        unnest($30::bigint[]), unnest($31::bytea[])) a
    WHERE a.instance IN (SELECT id FROM new)
), labels AS (
    INSERT INTO @label (instance, key, value)
    SELECT * FROM (SELECT unnest($32::bigint[]) AS instance, unnest($33::bytea[]), unnest($34::bytea[])) l
    WHERE l.instance IN (SELECT id FROM new)
)
SELECT (SELECT name FROM @session WHERE id = (SELECT id FROM me)), (SELECT array_agg(id) FROM new)
"""
LAST_RUN: Final = "SELECT id, run FROM @instance WHERE instance_id = $1 AND NOT replaced"

DEFINITION_ID: Final = "SELECT id, digest = $3 FROM @definition WHERE name = $1 AND fingerprint = $2"
NEW_DEFINITION: Final = """
INSERT INTO @definition (name, fingerprint, digest, plan) VALUES ($1, $2, $3, $4)
ON CONFLICT (name, fingerprint) DO UPDATE SET digest = excluded.digest, plan = excluded.plan RETURNING id
"""
TUNED_DEFINITION: Final = "UPDATE @definition SET digest = $1, plan = $2 WHERE id = $3"
DEFINITIONS: Final = "SELECT id, name, fingerprint FROM @definition WHERE id = ANY($1)"
PLAN: Final = "SELECT plan FROM @definition WHERE name = $1 AND fingerprint = $2"
META: Final = "SELECT key, value FROM @meta"

# --- reading ----------------------------------------------------------------------------------------

HOLDER: Final = "s.id, s.lease_until > clock_timestamp(), s.name, s.host, s.pid, s.started, s.boot_id, s.namespace"
SERVED: Final = f"SELECT s.serves, {HOLDER} FROM @session s WHERE s.serves && $1::bigint[]"  # noqa: S608  # a constant
COLUMNS: Final = f"""i.id, i.instance_id, i.run, d.name, d.fingerprint, i.state,
    (SELECT coalesce(max(j.seq), 0) FROM @journal j WHERE j.instance = i.id),
    i.created_us, i.updated_us, i.ended_us, a.due_us, i.input_digest, i.result_seq,
    (SELECT count(*) FROM @inbox m WHERE m.instance = i.id), i.labels, i.trace, i.definition, i.origin,
    i.suspect, i.suspect_seq, (SELECT count(*) FROM @offer o WHERE o.instance = i.id), i.lane, {HOLDER}"""  # noqa: S608
JOINS: Final = """JOIN @definition d ON d.id = i.definition LEFT JOIN @agenda a ON a.instance = i.id
    LEFT JOIN @session s ON s.id = a.session"""
HEADERS_LAST: Final = f"""
SELECT i.nonce, {COLUMNS} FROM @instance i {JOINS} WHERE i.instance_id = ANY($1) AND NOT i.replaced
"""  # noqa: S608  # a constant
_LOADED: Final = f"""
SELECT {COLUMNS}, i.image, e.seqs, e.facts, e.input, e.times, e.took,
    m.kinds, m.names, m.payloads, m.times, m.message_ids, m.ids, m.traces
FROM @instance i {JOINS}
CROSS JOIN LATERAL (
    SELECT array_agg(j.seq ORDER BY j.seq) AS seqs, array_agg(j.facts ORDER BY j.seq) AS facts,
        array_agg(j.at_us ORDER BY j.seq) AS times, array_agg(j.took_us ORDER BY j.seq) AS took,
        (array_agg(j.output) FILTER (WHERE j.seq = 1 AND octet_length(j.output) <= {BROUGHT_BYTES}))[1] AS input
    FROM @journal j WHERE j.instance = i.id AND j.seq > i.image_seq
) e
CROSS JOIN LATERAL (
    SELECT array_agg(m.kind ORDER BY m.id) AS kinds, array_agg(m.name ORDER BY m.id) AS names,
        array_agg(m.payload ORDER BY m.id) AS payloads, array_agg(m.at_us ORDER BY m.id) AS times,
        array_agg(m.message_id ORDER BY m.id) AS message_ids, array_agg(m.id ORDER BY m.id) AS ids,
        array_agg(m.trace ORDER BY m.id) AS traces
    FROM @inbox m WHERE m.instance = i.id
) m
"""  # noqa: S608  # a constant
LOADED_LAST: Final = f"{_LOADED} WHERE i.instance_id = $1 AND NOT i.replaced"
LOADED_OF: Final = f"{_LOADED} WHERE i.id = ANY($1)"
LOADED_HELD: Final = f"{_LOADED} WHERE i.id = ANY($1) AND a.session = $2"
HOLDERS: Final = f"""
SELECT a.instance, {HOLDER} FROM @agenda a JOIN @session s ON s.id = a.session WHERE a.instance = ANY($1)
"""  # noqa: S608  # a constant
HISTORY: Final = """
SELECT seq, facts, output, at_us, took_us FROM @journal WHERE instance = $1 AND seq > $2 ORDER BY seq LIMIT $3
"""
VALUES: Final = """
SELECT seq, output FROM @journal WHERE instance = $1 AND seq = ANY($2::bigint[]) AND output IS NOT NULL
"""
# All unfinished instances are looked at, and of each its few rows elsewhere, never the journal.
STUCK: Final = """
SELECT instance_id, reason FROM (SELECT i.id, i.instance_id, CASE
    WHEN i.replaced THEN 'a later run of it is missing'
    WHEN a.instance IS NULL THEN 'it has no row in the agenda'
    WHEN a.session IS NOT NULL THEN
        CASE WHEN NOT EXISTS (SELECT 1 FROM @session WHERE id = a.session) THEN $1 END
    WHEN a.due_us IS NOT NULL THEN
        CASE WHEN NOT EXISTS (SELECT 1 FROM @definition WHERE id = i.definition AND id = a.definition)
            THEN 'it is due under a definition that is not its own' END
    WHEN i.state NOT IN ('waiting', 'paused', 'held') THEN $2
    WHEN EXISTS (SELECT 1 FROM @inbox WHERE instance = i.id) THEN $3
    END AS reason
FROM @instance i LEFT JOIN @agenda a ON a.instance = i.id
WHERE (i.ended_us IS NULL OR i.state NOT IN ('completed', 'failed', 'cancelled')) AND NOT (
    i.replaced AND EXISTS (SELECT 1 FROM @instance later WHERE later.earlier = i.id)
)) found
WHERE reason IS NOT NULL ORDER BY id
"""

# --- upkeep -----------------------------------------------------------------------------------------

ENDED_BEFORE: Final = """
SELECT id FROM @instance WHERE ended_us IS NOT NULL AND NOT replaced AND (ended_us, id) < ($1::bigint, $2::bigint)
ORDER BY ended_us, id LIMIT $3 FOR UPDATE SKIP LOCKED
"""
NEWEST_ENDED: Final = """
SELECT ended_us, id + 1 FROM @instance WHERE ended_us IS NOT NULL AND NOT replaced
ORDER BY ended_us DESC, id DESC LIMIT 1 OFFSET $1
"""
LAST_ENDED: Final = """
SELECT id FROM @instance WHERE instance_id = $1 AND NOT replaced AND ended_us IS NOT NULL FOR UPDATE
"""
REMOVE: Final = """
WITH RECURSIVE run AS (
    SELECT id, earlier FROM @instance WHERE id = ANY($1)
    UNION ALL SELECT i.id, i.earlier FROM run r JOIN @instance i ON i.id = r.earlier
), one AS (DELETE FROM @journal t USING run WHERE t.instance = run.id
), two AS (DELETE FROM @inbox t USING run WHERE t.instance = run.id
), three AS (DELETE FROM @received t USING run WHERE t.instance = run.id
), four AS (DELETE FROM @label t USING run WHERE t.instance = run.id
), five AS (DELETE FROM @offer t USING run WHERE t.instance = run.id)
DELETE FROM @instance t USING run WHERE t.id = run.id
"""
