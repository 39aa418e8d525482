"""The SQL of claims and offers in PostgreSQL, one constant per statement; see :mod:`.postgres_queries`.

Every condition stands before its LIMIT, and every LIMIT on a walk along an index, so that neither parked rows nor
those that nobody here may take cost anything. What is chosen is first only looked at, over all definitions, to know how
many of each: then exactly so many are locked, past those that others have locked. A poll that finds nothing writes
nothing, not even a lock.
"""

from __future__ import annotations

from typing import Final

from .postgres_queries import COLUMNS, HOLDER, JOINS

# Sessions that are over, and those of this machine that nobody has looked at yet: $3 is its boot, $4 its pid namespace,
# $5 those whose processes live.
_OTHERS: Final = """others AS MATERIALIZED (
    SELECT id FROM @session
    WHERE id <> $1 AND (lease_until <= clock_timestamp() OR (boot_id = $3 AND namespace = $4 AND id <> ALL($5)))
)"""
OTHERS: Final = f"""
SELECT {HOLDER} FROM @session s
WHERE s.id <> $1 AND (s.lease_until <= clock_timestamp() OR (s.boot_id = $2 AND s.namespace = $3 AND s.id <> ALL($4)))
ORDER BY s.id
"""  # noqa: S608  # a constant

# An instance that wants to be left to others waits for them a while: $8 is our name, $9 until when it was due then.
_WALK: Final = """
SELECT a.instance, a.due_us, a.lane FROM @agenda a
WHERE a.definition = d.definition AND a.session IS NULL AND a.due_us IS NOT NULL AND a.due_us <= $7
  AND (a.avoid = '' OR a.avoid <> $8 OR a.due_us <= $9)
ORDER BY a.due_us, a.instance"""
CLAIM_DUE: Final = f"""
WITH {_OTHERS}, ahead AS MATERIALIZED (
    SELECT d.definition, row_number() OVER (PARTITION BY d.definition ORDER BY w.due_us, w.instance) AS turn,
        w.due_us, w.instance
    FROM unnest($6::bigint[]) d(definition) CROSS JOIN LATERAL ({_WALK} LIMIT $10) w
    WHERE NOT EXISTS (SELECT 1 FROM others)
), share AS (
    SELECT definition, count(*) AS n
    FROM (SELECT definition FROM ahead ORDER BY turn, due_us, instance LIMIT $10) first GROUP BY definition
), due AS MATERIALIZED (
    SELECT w.instance FROM share d CROSS JOIN LATERAL ({_WALK} LIMIT d.n FOR NO KEY UPDATE SKIP LOCKED) w
), me AS MATERIALIZED (
    SELECT id FROM @session WHERE id = $1 AND token = $2 AND EXISTS (SELECT 1 FROM due) FOR KEY SHARE
), claimed AS (
    UPDATE @agenda a SET session = me.id, nonce = $11 FROM due, me WHERE a.instance = due.instance
    RETURNING a.definition, a.due_us, a.instance
)
SELECT EXISTS (SELECT 1 FROM @session WHERE id = $1 AND token = $2), EXISTS (SELECT 1 FROM others),
    (SELECT array_agg(instance ORDER BY turn, due_us, instance) FROM (
        SELECT instance, due_us, row_number() OVER (PARTITION BY definition ORDER BY due_us, instance) AS turn
        FROM claimed
    ) c)
"""  # noqa: S608  # a constant
CLAIMED: Final = "SELECT instance FROM @agenda WHERE session = $1 AND nonce = $2 ORDER BY due_us, instance"
WAIT_FOR_CLAIM: Final = "SELECT id FROM @session WHERE id = $1 AND token = $2 FOR UPDATE"
"""Waits for a claim of the session's that is under way, as when its answer was lost."""

CLAIM_ONE: Final = """
WITH me AS MATERIALIZED (SELECT id FROM @session WHERE id = $1 AND token = $2 FOR KEY SHARE)
UPDATE @agenda a SET session = me.id FROM me WHERE a.session IS NULL
    AND a.instance = (SELECT i.id FROM @instance i WHERE i.instance_id = $3 AND NOT i.replaced AND i.ended_us IS NULL)
RETURNING a.instance
"""
LOOK: Final = f"""
SELECT i.id, i.ended_us IS NOT NULL, {HOLDER} FROM @instance i LEFT JOIN @agenda a ON a.instance = i.id
LEFT JOIN @session s ON s.id = a.session WHERE i.instance_id = $1 AND NOT i.replaced
"""  # noqa: S608  # a constant
POST_LOOK: Final = f"""
SELECT i.ended_us IS NOT NULL OR i.replaced,
    EXISTS (SELECT 1 FROM @received r WHERE r.instance = i.id AND r.message_id = $2), {HOLDER}
FROM @instance i LEFT JOIN @agenda a ON a.instance = i.id LEFT JOIN @session s ON s.id = a.session WHERE i.id = $1
"""  # noqa: S608  # a constant

# --- no more than so many at once -------------------------------------------------------------------

# Whoever claims of a limited workflow waits for others who do, before it counts: what they hold by then is counted.
ANY_DUE: Final = """
SELECT EXISTS (SELECT 1 FROM @session WHERE id = $1 AND token = $2), EXISTS (
    SELECT 1 FROM unnest($3::bigint[]) d(definition) CROSS JOIN LATERAL (
        SELECT 1 FROM @agenda a WHERE a.definition = d.definition AND a.session IS NULL AND a.due_us IS NOT NULL
           AND a.due_us <= $4 LIMIT 1
    ) w)
"""
LOCK_WORKFLOWS: Final = """
SELECT o.id FROM @definition o
WHERE o.name IN (SELECT name FROM @definition WHERE id = ANY($1)) ORDER BY o.id FOR NO KEY UPDATE
"""
WORKFLOWS: Final = "SELECT id, name FROM @definition WHERE id = ANY($1)"
HELD: Final = """
SELECT d.name, a.lane, count(*) FROM @agenda a JOIN @definition d ON d.id = a.definition
WHERE a.session IS NOT NULL GROUP BY d.name, a.lane
"""
_FREE: Final = """
SELECT due_us, instance, lane FROM @agenda
WHERE definition = $1 AND session IS NULL AND due_us IS NOT NULL AND due_us <= $2
  AND (avoid = '' OR avoid <> $3 OR due_us <= $4)"""
DUE: Final = f"{_FREE} ORDER BY due_us, instance LIMIT $5"
DUE_IN_LANE: Final = f"{_FREE} AND lane = $6 AND lane <> '' ORDER BY due_us, instance LIMIT $5"
DUE_IN_NO_LANE: Final = f"{_FREE} AND lane = '' ORDER BY due_us, instance LIMIT $5"
LANES: Final = """
WITH RECURSIVE lanes(lane) AS (
    SELECT ''::bytea
    UNION ALL SELECT (
        SELECT a.lane FROM @agenda a WHERE a.definition = $1 AND a.session IS NULL AND a.due_us IS NOT NULL
           AND a.lane <> '' AND a.lane > lanes.lane ORDER BY a.lane LIMIT 1
    ) FROM lanes WHERE lanes.lane IS NOT NULL
)
SELECT lane FROM lanes WHERE lane IS NOT NULL
"""
TAKE_THESE: Final = """
WITH due AS MATERIALIZED (
    SELECT instance FROM @agenda WHERE instance = ANY($2) AND session IS NULL FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE @agenda a SET session = $1, nonce = 0 FROM due WHERE a.instance = due.instance RETURNING a.instance
"""

NEXT_DUE: Final = """
SELECT d.name, d.id, (
    SELECT min(a.due_us) FROM @agenda a WHERE a.definition = d.id AND a.session IS NULL AND a.due_us IS NOT NULL
) FROM @definition d WHERE d.name = ANY($1) ORDER BY d.id
"""

# --- offers -----------------------------------------------------------------------------------------

_ME: Final = "me AS MATERIALIZED (SELECT id FROM @session WHERE id = $1 AND token = $2 FOR KEY SHARE)"
OFFER: Final = f"""
WITH {_ME}, new AS (
    INSERT INTO @offer (instance, definition, step, work, rank_us, tags, lives)
    SELECT o.instance, a.definition, o.step, o.work, o.rank_us, o.tags::text[], o.lives
    FROM me CROSS JOIN unnest($3::bigint[], $4::bytea[], $5::bytea[], $6::bigint[], $7::text[], $8::bigint[])
        WITH ORDINALITY o(instance, step, work, rank_us, tags, lives, place)
    JOIN @agenda a ON a.instance = o.instance AND a.session = me.id
    WHERE NOT EXISTS (SELECT 1 FROM @offer x WHERE x.instance = o.instance AND sha256(x.step) = sha256(o.step))
    ORDER BY o.place
    ON CONFLICT (instance, sha256(step)) DO NOTHING RETURNING 1
)
SELECT (SELECT count(*) FROM me), (SELECT count(*) FROM new)
"""  # noqa: S608  # a constant
OFFERED: Final = """
SELECT o.step, coalesce(s.name, ''::bytea) FROM @offer o LEFT JOIN @session s ON s.id = o.session
WHERE o.instance = $1 ORDER BY o.id
"""
_WALK_OFFERS: Final = """
SELECT o.id, o.rank_us FROM @offer o WHERE o.definition = d.definition AND o.session IS NULL AND o.tags <@ $7::text[]
ORDER BY o.rank_us, o.id"""
CLAIM_OFFERS: Final = f"""
WITH {_OTHERS}, ahead AS MATERIALIZED (
    SELECT d.definition, w.rank_us, w.id
    FROM unnest($6::bigint[]) d(definition) CROSS JOIN LATERAL ({_WALK_OFFERS} LIMIT $8) w
    WHERE NOT EXISTS (SELECT 1 FROM others)
), share AS (
    SELECT definition, count(*) AS n FROM (SELECT definition FROM ahead ORDER BY rank_us, id LIMIT $8) first
    GROUP BY definition
), free AS MATERIALIZED (
    SELECT w.id FROM share d CROSS JOIN LATERAL ({_WALK_OFFERS} LIMIT d.n FOR NO KEY UPDATE SKIP LOCKED) w
), me AS MATERIALIZED (
    SELECT id FROM @session WHERE id = $1 AND token = $2 AND EXISTS (SELECT 1 FROM free) FOR KEY SHARE
), claimed AS (
    UPDATE @offer o SET session = me.id, nonce = $9 FROM free, me WHERE o.id = free.id RETURNING o.id
)
SELECT EXISTS (SELECT 1 FROM @session WHERE id = $1 AND token = $2), EXISTS (SELECT 1 FROM others),
    (SELECT array_agg(id) FROM claimed)
"""  # noqa: S608  # a constant
CLAIMED_OFFERS: Final = "SELECT id FROM @offer WHERE session = $1 AND nonce = $2"
WORK: Final = """
SELECT id, instance, step, work FROM @offer WHERE id = ANY($1) AND session = $2 ORDER BY rank_us, id
"""
HEADERS: Final = f"SELECT {COLUMNS} FROM @instance i {JOINS} WHERE i.id = ANY($1)"  # noqa: S608  # a constant
MINE: Final = """
SELECT id, instance, step, lives, called_off FROM @offer WHERE session = $1 AND id = ANY($2) ORDER BY id
FOR NO KEY UPDATE
"""
OF_SESSION: Final = """
SELECT id, instance, step, lives, called_off FROM @offer WHERE session = $1 ORDER BY id FOR NO KEY UPDATE
"""
REMOVE_OFFERS: Final = "DELETE FROM @offer WHERE id = ANY($1)"
REMOVE_ALL: Final = "DELETE FROM @offer WHERE instance = $1"
FREE_OFFERS: Final = "UPDATE @offer SET session = NULL, nonce = 0, lives = lives - $2 WHERE id = ANY($1)"
MOVE: Final = "UPDATE @offer SET definition = $2 WHERE instance = $1"
CALL_OFF: Final = """
SELECT o.id, o.step, o.session IS NULL FROM @offer o JOIN @agenda a ON a.instance = o.instance
WHERE o.instance = $1 AND a.session = $2 AND o.step = ANY($3) FOR NO KEY UPDATE OF o
"""
HOLDINGS: Final = """
SELECT (SELECT array_agg(a.instance ORDER BY a.instance) FROM @agenda a WHERE a.session = s.id),
    (SELECT array_agg(o.id ORDER BY o.id) FROM @offer o WHERE o.session = s.id)
FROM @session s WHERE s.id = $1 AND s.token = $2
"""
HOLDS: Final = "SELECT 1 FROM @agenda WHERE instance = $1 AND session = $2"
MARK: Final = "UPDATE @offer SET called_off = true WHERE id = ANY($1)"
STILL_WANTED: Final = "SELECT id FROM @offer WHERE id = ANY($1) AND session = $2 AND NOT called_off"
STUCK_OFFERS: Final = """
SELECT i.instance_id, CASE
    WHEN i.id IS NULL OR i.replaced OR i.ended_us IS NOT NULL THEN $1
    WHEN o.session IS NOT NULL AND NOT EXISTS (SELECT 1 FROM @session s WHERE s.id = o.session) THEN $2
END FROM @offer o LEFT JOIN @instance i ON i.id = o.instance
WHERE i.id IS NULL OR i.replaced OR i.ended_us IS NOT NULL
   OR (o.session IS NOT NULL AND NOT EXISTS (SELECT 1 FROM @session s WHERE s.id = o.session))
ORDER BY o.id
"""
