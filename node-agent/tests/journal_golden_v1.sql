-- A journal of format 1, as `sqlite3 journal.db .dump` shows it. Never edit: agents in the field have such files.
PRAGMA application_id = 1145522764;
PRAGMA user_version = 1;
CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('pool', '0198c2a5-7f00-4000-8000-0000000000aa');
CREATE TABLE record (scope TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (scope, key)) STRICT, WITHOUT ROWID;
INSERT INTO record VALUES ('node', 'qgroup', x'0107');
INSERT INTO record VALUES ('0198c2a5-7f00-7000-8000-000000000001', 'authority', x'7b7d');
INSERT INTO record VALUES ('0198c2a5-7f00-7000-8000-000000000001', 'commit/x', x'');
