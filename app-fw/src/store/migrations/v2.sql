-- A rule stands in its chain and namespace where its rank puts it. Ranks have gaps, so that a rule can be put in or taken
-- out without touching another. What a rule says of its place is in its body only. Ids are given by the program, which
-- remembers the highest (meta, 'last_id'): one that a deleted rule had is never given again.
INSERT INTO meta (key, value) SELECT 'last_id', max(
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'rules'), 0),
    coalesce((SELECT max(id) FROM rules), 0)
);
CREATE TABLE ranked_rules (
    id   INTEGER PRIMARY KEY CHECK (id > 0),
    rank INTEGER NOT NULL,
    body TEXT    NOT NULL
) STRICT;
INSERT INTO ranked_rules (id, rank, body) SELECT id, position << 32, body FROM rules;
DROP TABLE rules;
ALTER TABLE ranked_rules RENAME TO rules;

-- Packets for which a rule fired. Apart, since they change without the rule.
CREATE TABLE counters (
    id      INTEGER PRIMARY KEY CHECK (id > 0),
    packets INTEGER NOT NULL CHECK (packets >= 0),
    bytes   INTEGER NOT NULL CHECK (bytes >= 0)
) STRICT;

CREATE TABLE sets (
    name TEXT PRIMARY KEY NOT NULL,
    kind TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE elements (
    name    TEXT NOT NULL REFERENCES sets (name) ON DELETE CASCADE,
    element TEXT NOT NULL,
    PRIMARY KEY (name, element)
) STRICT, WITHOUT ROWID;

-- time: microseconds after 1970, UTC. changes: a JSON array of lines. past: how everything that was changed was before,
-- JSON, compressed (LZ4 with its length before it); NULL when it is no longer kept.
CREATE TABLE revisions (
    number  INTEGER PRIMARY KEY CHECK (number > 0),
    time    INTEGER NOT NULL,
    uid     INTEGER,
    pid     INTEGER,
    note    TEXT,
    changes TEXT    NOT NULL,
    past    BLOB
) STRICT;
