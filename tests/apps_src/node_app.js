// An ordinary Node application; knows nothing of Sluice. NODE_PATH names the folder of better-sqlite3 (or sqlite3).
//   node node_app.js write FOLDER      fills FOLDER/node.db
//   node node_app.js read FOLDER       checks it; writing must be refused
"use strict";
const path = require("path");

const ROWS = 1000;
const SETTINGS = ["journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "cache_size=-64000",
  "mmap_size=268435456", "wal_autocheckpoint=1000", "foreign_keys=ON", "temp_store=MEMORY"];

/** The few calls the application needs, over whichever binding is installed; all return promises. */
function open(file) {
  let Better = null;
  try { Better = require("better-sqlite3"); } catch (missing) { /* the other one then */ }
  if (Better) {
    const db = new Better(file, { timeout: 5000 });
    return {
      binding: "better-sqlite3",
      run: async (sql, ...values) => (values.length ? db.prepare(sql).run(...values) : db.exec(sql)),
      get: async (sql, ...values) => db.prepare(sql).get(...values),
      backup: (target) => db.backup(target),
      close: async () => db.close(),
    };
  }
  const sqlite3 = require("sqlite3");
  const db = new sqlite3.Database(file);
  const call = (name) => (sql, ...values) => new Promise((resolve, reject) =>
    db[name](sql, ...values, (error, row) => (error ? reject(error) : resolve(row))));
  return { binding: "sqlite3", run: call("run"), get: call("get"), backup: async () => {},
    close: () => new Promise((resolve, reject) => db.close((error) => (error ? reject(error) : resolve()))) };
}

function expect(condition, what) {
  if (!condition) throw new Error(`not as it should be: ${what}`);
}

async function write(file) {
  const db = open(file);
  for (const setting of SETTINGS) await db.run("PRAGMA " + setting);
  await db.run("CREATE TABLE events(id INTEGER PRIMARY KEY, body TEXT NOT NULL)");
  for (let n = 0; n < ROWS; n++) await db.run("INSERT INTO events(body) VALUES(?)", JSON.stringify({ n, text: "x".repeat(n % 200) }));
  await db.run("BEGIN");
  for (let n = 0; n < ROWS; n++) await db.run("INSERT INTO events(body) VALUES(?)", `in one transaction ${n}`);
  await db.run("COMMIT");
  await db.run("BEGIN");
  await db.run("DELETE FROM events");
  await db.run("ROLLBACK");
  await db.run("PRAGMA wal_checkpoint(TRUNCATE)");
  console.log(`wrote with ${db.binding}`);
  await db.close();
  await check(file);
}

async function check(file) {
  const db = open(file);
  const row = await db.get("SELECT count(*) AS n, sum(length(body)) AS bytes FROM events");
  let bytes = 0;
  for (let n = 0; n < ROWS; n++) bytes += JSON.stringify({ n, text: "x".repeat(n % 200) }).length + `in one transaction ${n}`.length;
  expect(row.n === 2 * ROWS && row.bytes === bytes, `${row.n} rows, ${row.bytes} bytes, not ${bytes}`);
  expect((await db.get("PRAGMA integrity_check")).integrity_check === "ok", "integrity");
  await db.close();
}

async function read(file) {
  await check(file);
  const db = open(file);
  const began = Date.now();
  let refusal = "";
  try { await db.run("INSERT INTO events(body) VALUES('nobody')"); } catch (error) { refusal = error.message; }
  expect(/readonly database/.test(refusal), `writing says: ${refusal || "nothing"}`);
  expect(Date.now() - began < 3000, "the refusal took long");
  await db.close();
}

const [role, folder] = process.argv.slice(2);
(role === "write" ? write : read)(path.join(folder, "node.db")).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
