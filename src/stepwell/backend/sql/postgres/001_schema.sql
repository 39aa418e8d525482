-- What an instance costs: one row in `instance`, one in `agenda` until it has ended, one in `journal` per event. A step
-- appends one journal row and touches nothing else.
--
-- Text that callers give (ids, names, labels, tags) is stored as the bytes of its UTF-8: PostgreSQL's own text can hold
-- no NUL and compares by collation. To read it by hand: SELECT encode(instance_id, 'escape') FROM instance.
--
-- @name stands for a table or an index in the schema that is being made.

CREATE TABLE @meta (
    key   text PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE @definition (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        bytea NOT NULL,
    fingerprint bytea NOT NULL,
    digest      bytea NOT NULL,                 -- of the plan: whoever registers the same one again sends no more
    plan        bytea NOT NULL,
    UNIQUE (name, fingerprint)
);

CREATE TABLE @session (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token       bigint NOT NULL UNIQUE,         -- random; every write of the session carries it
    lease_until timestamptz NOT NULL,           -- when the lease ends, on the server's clock
    name        bytea NOT NULL,
    host        bytea NOT NULL,
    pid         bigint NOT NULL,
    started     bigint NOT NULL,
    boot_id     bytea NOT NULL,
    namespace   bytea NOT NULL,
    serves      bigint[] NOT NULL DEFAULT '{}'  -- the definitions that it has the code of
) WITH (fillfactor = 30);                       -- renewing it touches no index, so that it stays on its page

CREATE TABLE @instance (                        -- one run of an instance
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance_id  bytea NOT NULL,
    earlier      bigint,                        -- the run that it replaced
    definition   bigint NOT NULL,
    created_us   bigint NOT NULL,
    updated_us   bigint NOT NULL,
    ended_us     bigint,                        -- set exactly while it is ended
    nonce        bigint NOT NULL,               -- drawn by who created it, or wrote its last rest
    run          integer NOT NULL,
    result_seq   integer NOT NULL DEFAULT 0,
    image_seq    integer NOT NULL DEFAULT 0,    -- the last entry that `image` covers
    suspect      integer NOT NULL DEFAULT 0,    -- sessions that were lost with it since `suspect_seq` was written
    suspect_seq  integer NOT NULL DEFAULT 0,
    replaced     boolean NOT NULL DEFAULT false, -- a later run exists: no more writes
    state        text COLLATE "C" NOT NULL,
    input_digest bytea NOT NULL,
    labels       bytea,                         -- a JSON object of strings, or nothing
    trace        bytea NOT NULL,
    origin       bytea NOT NULL,                -- the store its idempotency keys are made from, '' for this one
    lane         bytea NOT NULL,
    image        bytea
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX instance_last ON @instance (instance_id) WHERE NOT replaced;
CREATE INDEX instance_ended ON @instance (ended_us, id) WHERE ended_us IS NOT NULL AND NOT replaced;
CREATE INDEX instance_rare ON @instance (state, id)
WHERE state IN ('failed', 'cancelled', 'paused', 'held') AND NOT replaced;

CREATE TABLE @label (                           -- the same as `instance.labels`, to be found by
    instance bigint NOT NULL,
    key      bytea NOT NULL,
    value    bytea NOT NULL,
    PRIMARY KEY (instance, key)
);

CREATE INDEX label_value ON @label (key, value, instance);

CREATE TABLE @journal (                         -- append-only
    instance bigint NOT NULL,
    at_us    bigint NOT NULL,
    took_us  bigint NOT NULL,
    seq      integer NOT NULL,
    facts    bytea NOT NULL,
    output   bytea,
    PRIMARY KEY (instance, seq)                 -- also the version check: the next seq can be taken once
);

CREATE TABLE @agenda (                          -- exactly the instances that have not ended
    instance   bigint PRIMARY KEY,
    definition bigint NOT NULL,
    due_us     bigint,                          -- when it wants to be claimed; NULL: only a message can move it
    session    bigint,                          -- who holds it
    nonce      bigint NOT NULL DEFAULT 0,       -- drawn by the claim, which finds its rows again by it
    mail       integer NOT NULL DEFAULT 0,      -- unread messages; a release that meets a post sees it here
    lane       bytea NOT NULL DEFAULT '',
    avoid      bytea NOT NULL DEFAULT ''        -- the name of a holder that should leave it to others at first
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE INDEX agenda_due ON @agenda (definition, due_us, instance) WHERE session IS NULL AND due_us IS NOT NULL;
CREATE INDEX agenda_lane ON @agenda (definition, lane, due_us, instance)
WHERE session IS NULL AND due_us IS NOT NULL AND lane <> '';
CREATE INDEX agenda_session ON @agenda (session) WHERE session IS NOT NULL;
CREATE INDEX agenda_mail ON @agenda (session) WHERE session IS NOT NULL AND mail > 0;

CREATE TABLE @inbox (                           -- messages nobody has taken in yet
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance   bigint NOT NULL,
    at_us      bigint NOT NULL,
    kind       bytea NOT NULL,
    name       bytea NOT NULL,
    message_id bytea NOT NULL,
    trace      bytea NOT NULL DEFAULT '',       -- what its sender was doing, as in the instance
    payload    bytea
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE INDEX inbox_instance ON @inbox (instance, id);

CREATE TABLE @received (                        -- message ids that were accepted, kept as long as their instance
    instance   bigint NOT NULL,
    message_id bytea NOT NULL,
    PRIMARY KEY (instance, message_id)
);

CREATE TABLE @offer (                           -- single steps of held instances that any session may run
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance   bigint NOT NULL,
    definition bigint NOT NULL,
    rank_us    bigint NOT NULL,
    session    bigint,                          -- who runs it
    nonce      bigint NOT NULL DEFAULT 0,       -- as in the agenda
    lives      integer NOT NULL,                -- so many more sessions may be lost with it
    called_off boolean NOT NULL DEFAULT false,
    tags       text[] COLLATE "C" NOT NULL,     -- what its runner must be able to do, each as hexadecimal UTF-8
    step       bytea NOT NULL,
    work       bytea NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE UNIQUE INDEX offer_step ON @offer (instance, sha256(step)); -- a step may be longer than an index allows
CREATE INDEX offer_free ON @offer (definition, rank_us, id) WHERE session IS NULL;
CREATE INDEX offer_session ON @offer (session) WHERE session IS NOT NULL;
