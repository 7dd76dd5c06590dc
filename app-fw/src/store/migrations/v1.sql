-- "APFW": tells this database from any other application's.
PRAGMA application_id = 0x41504657;

-- AUTOINCREMENT: an id that a deleted rule had is never given again.
-- Positions are dense from 0 in each (chain, namespace). The index is not unique, because SQLite checks uniqueness after
-- each row and so could not shift positions in one UPDATE.
CREATE TABLE rules (
    id        INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    chain     TEXT    NOT NULL CHECK (chain IN ('OUTPUT', 'INPUT', 'FORWARD')),
    namespace TEXT    NOT NULL,
    position  INTEGER NOT NULL CHECK (position >= 0),
    body      TEXT    NOT NULL
) STRICT;
CREATE INDEX rules_by_position ON rules (chain, namespace, position);

CREATE TABLE policies (
    chain     TEXT NOT NULL CHECK (chain IN ('OUTPUT', 'INPUT', 'FORWARD')),
    namespace TEXT NOT NULL,
    verdict   TEXT NOT NULL,
    PRIMARY KEY (chain, namespace)
) STRICT, WITHOUT ROWID;

-- dev, ino and size are unsigned 64-bit numbers kept in SQLite's signed ones, bit by bit.
-- last_used is a counter, not a time: the clock may be set.
CREATE TABLE digests (
    dev       INTEGER NOT NULL,
    ino       INTEGER NOT NULL,
    size      INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    ctime_ns  INTEGER NOT NULL,
    sha256    BLOB    NOT NULL CHECK (length(sha256) = 32),
    last_used INTEGER NOT NULL,
    PRIMARY KEY (dev, ino, size, mtime_ns, ctime_ns)
) STRICT, WITHOUT ROWID;
CREATE INDEX digests_by_use ON digests (last_used);

CREATE TABLE meta (
    key   TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta (key, value) VALUES ('revision', 0);
