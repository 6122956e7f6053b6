"""Which databases the torture has and who works on them."""

from dataclasses import dataclass

from clients import Client

PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


@dataclass
class Database:
    id: str
    profile: str
    path: str
    page_size: int = 4096
    writers: int = 1
    checkpointed: bool = False
    partners: tuple = ()
    atomic_pairs: bool = False  # its transactions with partners use a super-journal
    fragile: bool = False  # SQLite itself loses or damages it when everybody is killed: see docs/TESTING.md

    def target(self, path):
        return f"{self.id}:{self.profile}:{path}"


def make_databases(random):
    """Page sizes vary with the seed; the smallest, the largest and 4096 are always among them."""
    sizes = [512, 65536, random.choice(PAGE_SIZES), random.choice(PAGE_SIZES), random.choice(PAGE_SIZES)]
    random.shuffle(sizes)
    databases = [
        Database("app", "production", "app.db", 4096, writers=2, checkpointed=True),
        Database("wal", "wal", "deep/er/wal.db", sizes[0], writers=2, checkpointed=True, partners=("app",)),
        Database("delete", "delete", "delete.db", sizes[1], writers=2, partners=("truncate",), atomic_pairs=True),
        Database("truncate", "truncate", "truncate.sqlite", sizes[2], partners=("delete",), atomic_pairs=True),
        Database("persist", "persist", "deep/persist.db3", sizes[3]),
        Database("switching", "switching", "switching", random.choice(PAGE_SIZES), partners=("persist",)),
        Database("exclusive", "exclusive", "exclusive.db", random.choice(PAGE_SIZES), checkpointed=True),
        Database("big", "big", "big.db", 4096, checkpointed=True),
        Database("zero", "zero_salt", "zero salt.db", sizes[4], writers=2, fragile=True),
    ]
    return databases + [Database(f"tenant{n}", "churn", f"tenants/{n}.db") for n in range(6)]


def make_clients(torture):
    """Writer numbers are unique: a writer uses its own in every database it writes to."""
    clients = []

    def add(name, role, node, databases, writer=0):
        targets = [database.target(torture.path(database, node)) for database in databases]
        clients.append(Client(torture.options.worker, name, role, node, targets, torture.directory,
                              torture.options.seed, writer, gentle=node == 0 and databases[0].fragile))

    by_id = {database.id: database for database in torture.databases}
    fixed = [database for database in torture.databases if database.profile != "churn"]
    tenants = [database for database in torture.databases if database.profile == "churn"]
    number = 0
    for database in fixed:
        for n in range(database.writers):
            add(f"writer-{database.id}-{n}", "writer", 0, [database] + [by_id[p] for p in database.partners], number)
            number += 1
    add("churner", "churner", 0, tenants, number)
    fragile = [database for database in fixed if database.fragile]
    sturdy = [database for database in fixed if not database.fragile]
    add("checkpointer-fragile", "checkpointer", 0, fragile)
    add("reader-fragile", "reader", 0, fragile)
    for n in range(2):
        add(f"checkpointer-{n}", "checkpointer", 0, [database for database in sturdy if database.checkpointed])
        add(f"reader-primary-{n}", "reader", 0, sturdy)
        if torture.replica is not None:
            add(f"reader-replica-{n}", "reader", 1, fixed + tenants)
    return clients
