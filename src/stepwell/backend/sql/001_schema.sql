-- What an instance costs: one row in `instance`, one in `agenda` until it has ended, one in `journal` per event. A step
-- appends one journal row and touches nothing else. Ids that callers remember are never given out twice
-- (AUTOINCREMENT), so a late write or a late "taken" cannot hit a newer row by accident.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE definition (
    id          INTEGER PRIMARY KEY,
    name        TEXT NOT NULL,
    number      INTEGER NOT NULL,               -- in order of arrival, within a name
    fingerprint TEXT NOT NULL,
    plan        BLOB NOT NULL,
    UNIQUE (name, fingerprint)
) STRICT;

CREATE TABLE session (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    token      INTEGER NOT NULL,                -- random; every write of the session carries it
    lease_us   INTEGER NOT NULL,                -- when the lease ends, on the lease clock
    lease_boot TEXT NOT NULL,                   -- the boot that clock counts from
    name       TEXT NOT NULL,
    host       TEXT NOT NULL,
    pid        INTEGER NOT NULL,
    started    INTEGER NOT NULL,
    boot_id    TEXT NOT NULL,
    namespace  TEXT NOT NULL,
    serves     TEXT NOT NULL DEFAULT '[]'       -- a JSON array of the definitions that it has the code of
) STRICT;

CREATE TABLE instance (                         -- one run of an instance
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id  TEXT NOT NULL,
    run          INTEGER NOT NULL,
    definition   INTEGER NOT NULL,
    state        TEXT NOT NULL,
    replaced     INTEGER NOT NULL DEFAULT 0,    -- a later run exists: no more writes
    created_us   INTEGER NOT NULL,
    updated_us   INTEGER NOT NULL,
    ended_us     INTEGER,                       -- set exactly while it is ended
    result_seq   INTEGER NOT NULL DEFAULT 0,
    image_seq    INTEGER NOT NULL DEFAULT 0,    -- the last entry that `image` covers
    input_digest BLOB NOT NULL,
    labels       TEXT,                          -- a JSON object of strings, or nothing
    trace        TEXT NOT NULL,
    origin       TEXT NOT NULL,                 -- the store its idempotency keys are made from, '' for this one
    lane         TEXT NOT NULL DEFAULT '',      -- it shares a limit on how many are held with others of its lane
    image        BLOB,                          -- last, as it may be long
    UNIQUE (instance_id, run)
) STRICT;

CREATE INDEX instance_ended ON instance (ended_us) WHERE ended_us IS NOT NULL AND NOT replaced;
CREATE INDEX instance_rare ON instance (state)
WHERE state = 'failed' OR state = 'cancelled' OR state = 'paused' OR state = 'held'; -- IN would sort a list at each write

CREATE TABLE label (                            -- the same as `instance.labels`, to be found by
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    instance INTEGER NOT NULL,
    PRIMARY KEY (key, value, instance)
) STRICT, WITHOUT ROWID;

CREATE TABLE journal (                          -- append-only
    id       INTEGER PRIMARY KEY,
    instance INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    at_us    INTEGER NOT NULL,
    took_us  INTEGER NOT NULL,
    facts    BLOB NOT NULL,
    output   BLOB,
    UNIQUE (instance, seq)                      -- also the version check: the next seq can be taken once
) STRICT;

CREATE TABLE agenda (                           -- exactly the instances that have not ended
    instance    INTEGER PRIMARY KEY,
    definition  INTEGER NOT NULL,
    due_us      INTEGER,                        -- when it wants to be claimed; NULL: only a message can move it
    session     INTEGER,                        -- who holds it
    lane        TEXT NOT NULL DEFAULT '',       -- the same as `instance.lane`
    avoid       TEXT NOT NULL DEFAULT '',       -- the name of whoever should leave it to others for a while
    suspect     INTEGER NOT NULL DEFAULT 0,     -- how many sessions were lost with it
    suspect_seq INTEGER NOT NULL DEFAULT 0      -- while this was its last entry; a later one makes `suspect` void
) STRICT;

CREATE INDEX agenda_due ON agenda (definition, due_us) WHERE session IS NULL AND due_us IS NOT NULL;
CREATE INDEX agenda_lane ON agenda (definition, lane, due_us)
WHERE session IS NULL AND due_us IS NOT NULL AND lane != ''; -- costs nothing where there are no lanes
CREATE INDEX agenda_session ON agenda (session, definition, lane) WHERE session IS NOT NULL;

CREATE TABLE offer (                            -- steps of held instances that any session may run
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    instance   INTEGER NOT NULL,
    definition INTEGER NOT NULL,                -- that of its instance
    session    INTEGER,                         -- who has claimed it
    rank_us    INTEGER NOT NULL,
    lives      INTEGER NOT NULL,                -- how many sessions may still be lost with it
    called_off INTEGER NOT NULL DEFAULT 0,
    tags       TEXT NOT NULL,                   -- a sorted JSON array of strings
    step       BLOB NOT NULL,
    work       BLOB NOT NULL,
    UNIQUE (instance, step)
) STRICT;

CREATE INDEX offer_free ON offer (definition, tags, rank_us) WHERE session IS NULL;
CREATE INDEX offer_session ON offer (session) WHERE session IS NOT NULL;

CREATE TABLE inbox (                            -- messages nobody has taken in yet
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    instance   INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    payload    BLOB,
    at_us      INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    trace      TEXT NOT NULL DEFAULT ''         -- what its sender was doing, as in `instance.trace`
) STRICT;

CREATE INDEX inbox_instance ON inbox (instance);

CREATE TABLE received (                         -- message ids that were accepted, kept as long as their instance
    instance   INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    PRIMARY KEY (instance, message_id)
) STRICT, WITHOUT ROWID;
