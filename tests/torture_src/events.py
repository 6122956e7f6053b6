"""What happens to the processes of the torture, from killed writers to a replica with an empty disk."""

import os
import shutil
import signal

# (event, how often in one shuffled deck)
DECK = [
    ("kill_client", 12), ("kill_writers_of_one", 5), ("kill_all_writers", 1), ("freeze_client", 3),
    ("kill_primary", 3), ("kill_replica", 3), ("kill_both", 1), ("restart_primary", 1), ("restart_replica", 1),
    ("wipe_replica", 1), ("outlive_log", 2), ("cut", 4), ("stall", 2), ("corrupt", 2),
    ("kill_worker_of_primary", 12), ("kill_worker_of_replica", 8), ("crash_worker", 2),  # --guardian only
]


class Events:
    def __init__(self, torture):
        self.torture = torture
        self.random = torture.random

    def possible(self, name):
        if "_worker" in name and not self.torture.options.guardian:
            return False
        return not self.torture.options.raw or name in ("kill_client", "kill_writers_of_one", "kill_all_writers",
                                                        "freeze_client")

    def play(self, name):
        self.torture.say(name)
        getattr(self, name)()

    # ---- clients ----

    def _kill_and_restart(self, clients):
        for client in clients:
            if client.gentle:
                client.quit()
            else:
                client.kill()
        self.torture.run_for(self.random.choice([0, 0, 0.05, 0.5]))
        for client in clients:
            client.start()

    def kill_client(self):
        self._kill_and_restart([self.random.choice(self.torture.clients)])

    def kill_writers_of_one(self):
        """Everybody who writes to one database: what they leave is for recovery."""
        database = self.random.choice([d for d in self.torture.databases if d.profile != "churn"])
        self._kill_and_restart([client for client in self.torture.on_node(0)
                                if any(target.startswith(database.id + ":") for target in client.targets)])

    def kill_all_writers(self):
        self._kill_and_restart([client for client in self.torture.on_node(0) if client.role != "reader"])

    def freeze_client(self):
        """SIGSTOP: whatever locks it holds stay held for a while."""
        client = self.random.choice(self.torture.clients)
        os.kill(client.process.pid, signal.SIGSTOP)
        try:
            self.torture.run_for(self.random.uniform(0.05, 1.0))
        finally:
            os.kill(client.process.pid, signal.SIGCONT)

    # ---- daemons ----

    def _kill_node(self, number):
        """The daemon first; its clients may go on for a moment and must then die too: processes that outlive their
        daemon are another issue's matter."""
        torture = self.torture
        node = torture.nodes[number]
        torture.outage_begins(number)
        node.kill()
        torture.run_for(self.random.choice([0, 0, 0.02, 0.2]))
        for client in torture.on_node(number):
            client.kill()
        if number == 0:
            torture.let_fragile_go()
        node.detach_dead()

    def _kill_worker(self, node, number=signal.SIGKILL):
        """No outage: the clients go on, and nothing that they see may be wrong. Sometimes the next one, too, while it starts."""
        before = None
        for _ in range(self.random.choice([1, 1, 1, 2, 4])):
            before = node.kill_worker(number) or before
            self.torture.run_for(self.random.choice([0, 0.02, 0.1, 0.5]))
        node.wait_worker(after=before)

    def kill_worker_of_primary(self):
        self._kill_worker(self.torture.primary)

    def kill_worker_of_replica(self):
        self._kill_worker(self.torture.replica)

    def crash_worker(self):
        node = self.random.choice(self.torture.nodes)
        before = node.kill_worker(signal.SIGSEGV)
        if before is not None:
            node.wait_worker(after=before)

    def _revive_node(self, number):
        torture = self.torture
        torture.nodes[number].start()
        torture.supervise()
        torture.outage_ends(number)
        if number == 1:
            torture.replica.wait_ready()
        else:
            torture.recreate_fragile_databases()
            torture.hold_fragile()
        for client in torture.on_node(number):
            client.start()

    def kill_primary(self):
        self._kill_node(0)
        self.torture.run_for(self.random.choice([0, 0, 0.5]))
        self._revive_node(0)

    def kill_replica(self):
        self._kill_node(1)
        self.torture.run_for(self.random.choice([0, 0, 0.5, 2]))
        self._revive_node(1)

    def kill_both(self):
        self._kill_node(0)
        self._kill_node(1)
        self._revive_node(0)
        self._revive_node(1)

    def _restart(self, number, between=lambda: None):
        torture = self.torture
        if number == 0:
            torture.quit_clients_of_primary()
        for client in torture.on_node(number):
            client.quit()
        torture.outage_begins(number)
        torture.nodes[number].stop()
        between()
        self._revive_node(number)

    def restart_primary(self):
        self._restart(0)

    def restart_replica(self):
        self._restart(1)

    def wipe_replica(self):
        """A replaced machine with an empty disk."""
        self._restart(1, lambda: shutil.rmtree(self.torture.replica.data))

    def outlive_log(self):
        """A replica away for so long that, where the log is short, it no longer reaches back to it; killed or stopped."""
        pause = lambda: self.torture.run_for(self.random.uniform(1.5, 4))
        if self.random.random() < 0.5:
            self._restart(1, pause)
        else:
            self._kill_node(1)
            pause()
            self._revive_node(1)

    # ---- the connection ----

    def _for_a_while(self, begin, longest):
        begin()
        try:
            self.torture.run_for(self.random.uniform(0.01, longest))
        finally:
            self.torture.proxy.mend()

    def cut(self):
        self._for_a_while(self.torture.proxy.cut, 2)

    def stall(self):
        self._for_a_while(self.torture.proxy.stall, 3)

    def corrupt(self):
        """One flipped bit must be refused, not applied; what follows repairs it."""
        self.torture.proxy.corrupt_one_byte(self.random.randrange(1, 200_000))
