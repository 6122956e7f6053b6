"""The oracle's own test: damage that a replicator's bug could do must be found, and named."""

import os
import sqlite3

from clients import Client
from nodes import TestFailure, wait_until

# how: (statements on the database, word in the verdict)
DAMAGE = {
    "lost": (["UPDATE counter SET n=n-1", "UPDATE progress SET seq=seq-1",
              "DELETE FROM parts WHERE seq=(SELECT max(seq) FROM parts)",
              "UPDATE progress SET tag=(SELECT tag FROM parts WHERE seq=progress.seq)"], "LOST"),
    "torn": (["DELETE FROM parts WHERE rowid=(SELECT max(rowid) FROM parts WHERE parts>1)"], "TORN"),
    "sum": (["UPDATE accounts SET balance=balance+1 WHERE id=1"], "SUM"),
    "counter": (["UPDATE counter SET n=n-1"], "COUNTER"),
    "body": (["UPDATE parts SET body=zeroblob(length(body)+8) WHERE rowid=(SELECT min(rowid) FROM parts)"], "BODY"),
    "rolled-back": (["INSERT INTO parts VALUES(1001,1,0,1,1,1,'')"], "ROLLED BACK"),
    "phantom": (["UPDATE counter SET n=n+1", "UPDATE progress SET seq=seq+1",
                 "INSERT INTO parts SELECT w,seq+1,part,parts,tag,sum,body FROM parts"
                 " WHERE seq=(SELECT max(seq) FROM parts)"], "NEVER COMMITTED"),
    "mixed": (["UPDATE progress SET tag=tag+1"], "MIXED"),
}


def sabotage_and_expect(torture):
    """Runs one writer, damages its database as options.sabotage says, and raises unless the oracle says the right word."""
    statements, word = DAMAGE[torture.options.sabotage]
    database = next(d for d in torture.databases if d.id == "delete")
    path = torture.path(database)
    client = Client(torture.options.worker, "writer", "writer", 0, [database.target(path)], torture.directory,
                    torture.options.seed)
    torture.clients = [client]
    client.start()
    wait_until(lambda: client.done > 20, 30, "the writer commits")
    client.quit()
    torture.supervise()
    torture.oracle.judge(database, path)
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    try:
        torture.oracle.judge(database, path)
    except TestFailure as verdict:
        if word not in str(verdict):
            raise TestFailure(f"the damage '{torture.options.sabotage}' was called: {verdict}") from verdict
        torture.say(f"found: {verdict}")
        return
    raise TestFailure(f"the damage '{torture.options.sabotage}' was not found in {os.path.basename(path)}")
