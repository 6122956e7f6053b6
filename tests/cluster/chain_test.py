"""Replicas of replicas: positions, lag and the primary's name come through the whole chain; circles are refused."""

import os
import shutil
import signal
import unittest

from cases import ClusterCase, connect, count, fill, integrity, wait_same_position, wait_until


def lag_ms(node):
    with open(node.path(".lag"), encoding="ascii") as file:
        return int(file.read())


class Chain(ClusterCase):
    def chain(self):
        primary = self.node("primary", extra=["--hostname", "the-primary"])
        middle = self.node("middle", primary, extra=["--hostname", "the-middle"])
        edge = self.node("edge", middle, extra=["--hostname", "the-edge"])
        edge.wait_ready()
        return primary, middle, edge

    def database(self, primary, name, rows=50):
        db = connect(primary.path(name))
        self.addCleanup(db.close)
        db.execute("PRAGMA journal_mode=WAL")
        fill(db, rows)
        return db

    def test_three_in_a_row(self):
        primary, middle, edge = self.chain()
        db = self.database(primary, "a.db")
        wait_same_position(primary, edge, "a.db")
        self.assertEqual(count(edge.path("a.db")), 50)
        for node in (middle, edge):
            with open(node.path(".primary"), encoding="ascii") as file:
                self.assertEqual(file.read().strip(), "the-primary")
        self.assertEqual(edge.status()["primary"]["via"], "the-middle")
        self.assertNotIn("via", middle.status()["primary"])
        for n in range(20):
            db.execute("INSERT INTO t VALUES(?, 'x')", (1000 + n,))
        position = wait_same_position(primary, edge, "a.db")
        # Acknowledged is what is on the next node's disk, at every joint.
        for above, below in ((primary, middle), (middle, edge)):
            def acknowledged(node=above, name=below.status()["hostname"]):
                return [d["durable"] for r in node.status()["replicas"] if r["hostname"] == name
                        for d in r["databases"] if d["name"] == "a.db"] == [position.split("/")[0]]
            wait_until(acknowledged, 20, f"{above.name} knows what {below.name} has on disk")

    def test_a_late_edge_is_served_by_the_middle(self):
        primary = self.node("primary")
        middle = self.node("middle", primary)
        for n in range(5):
            os.makedirs(primary.path(f"tenants/{n % 2}"), exist_ok=True)
            self.database(primary, f"tenants/{n % 2}/{n}.db")
        middle.wait_ready()
        for n in range(5):
            wait_same_position(primary, middle, f"tenants/{n % 2}/{n}.db")
        edge = self.node("edge", middle)
        edge.wait_ready()
        for n in range(5):
            wait_same_position(primary, edge, f"tenants/{n % 2}/{n}.db")
            self.assertEqual(integrity(edge.path(f"tenants/{n % 2}/{n}.db")), "ok")

    def test_lag_is_that_of_the_whole_chain(self):
        primary, middle, edge = self.chain()
        self.database(primary, "a.db")
        wait_same_position(primary, edge, "a.db")
        wait_until(lambda: lag_ms(edge) < 3000, 20, lambda: f"the edge's lag is {lag_ms(edge)} ms")
        primary.process.send_signal(signal.SIGSTOP)
        try:
            # Only the middle can see that its primary is silent: the edge has a lively connection.
            wait_until(lambda: lag_ms(edge) > 4000, 30, lambda: f"the edge's lag is {lag_ms(edge)} ms")
            self.assertTrue(edge.status()["primary"]["connected"])
        finally:
            primary.process.send_signal(signal.SIGCONT)
        wait_until(lambda: lag_ms(edge) < 3000, 30, lambda: f"the edge's lag is {lag_ms(edge)} ms")

    def test_the_middle_dies_and_comes_back(self):
        primary, middle, edge = self.chain()
        db = self.database(primary, "a.db")
        wait_same_position(primary, edge, "a.db")
        for n in range(3):
            db.execute("INSERT INTO t VALUES(?, 'before')", (1000 + n,))
            middle.kill()
            db.execute("INSERT INTO t VALUES(?, 'meanwhile')", (2000 + n,))
            middle.start()
            wait_same_position(primary, edge, "a.db")
        self.assertEqual(count(edge.path("a.db")), 56)

    def test_the_middle_loses_its_data(self):
        primary, middle, edge = self.chain()
        db = self.database(primary, "a.db")
        wait_same_position(primary, edge, "a.db")
        middle.stop()
        shutil.rmtree(middle.data)
        os.makedirs(middle.data)
        db.execute("INSERT INTO t VALUES(1000, 'meanwhile')")
        middle.start()
        wait_same_position(primary, edge, "a.db")
        self.assertEqual(count(edge.path("a.db")), 51)
        self.assertEqual(integrity(edge.path("a.db")), "ok")

    def test_a_database_that_the_primary_does_not_have_goes_everywhere(self):
        primary, middle, edge = self.chain()
        self.database(primary, "old.db").close()
        wait_same_position(primary, edge, "old.db")
        primary.stop()
        shutil.rmtree(primary.data)
        os.makedirs(primary.data)
        primary.start()
        db = self.database(primary, "new.db")
        wait_same_position(primary, edge, "new.db")
        wait_until(lambda: not os.path.exists(edge.path("old.db")), 20, "the edge has set old.db aside")
        self.assertTrue(os.listdir(os.path.join(edge.data, "lost+found")))
        db.execute("INSERT INTO t VALUES(1000, 'after')")
        self.database(primary, "old.db", rows=7)
        for name in ("new.db", "old.db"):
            wait_same_position(primary, edge, name)
        self.assertEqual(count(edge.path("old.db")), 7)


class Circles(ClusterCase):
    def test_circles_are_refused(self):
        for size in (2, 3):
            nodes = [self.node(f"c{size}-{n}", start=False) for n in range(size)]
            for n, node in enumerate(nodes):
                node.primary_url = nodes[(n + 1) % size].url
            for node in nodes:
                node.start()

            def told():
                return any("circle" in node.status()["primary"]["last_error"] for node in nodes)
            wait_until(told, 30, lambda: [node.status()["primary"] for node in nodes])
            for node in nodes:
                self.assertEqual(node.get("/v1/ready")[0], 503)
            # Pointed to a primary, one of them serves the rest.
            primary = self.node(f"primary{size}")
            nodes[0].stop()
            nodes[0].primary_url = primary.url
            nodes[0].start()
            db = connect(primary.path("a.db"))
            fill(db, 10)
            db.close()
            for node in nodes:
                wait_same_position(primary, node, "a.db", 60)
            for node in nodes:
                node.stop()
            primary.stop()


if __name__ == "__main__":
    unittest.main()
