"""A registration's way through the system as events in time: cores, statements that are shared, steps of the relay.

A pool of cores takes work first come, first served. Times are in ms.
"""

import collections
import dataclasses
import functools
import heapq
import random

from figures import ASSUMED, CALIBRATED, MAX_REQUESTS, MAX_ROWS, MAX_STATEMENTS, PACE, QUIET, QUIET_ANALYTICS, REGISTRATION
from figures import ROLES, SERVICES


def costs(calibrated=None):
    """What each role pays: for every registration, for a statement, and for a step of the relay."""
    given = calibrated or CALIBRATED
    whole = sum(REGISTRATION.values())
    each = {role: given["each"] * REGISTRATION[role] / whole for role in ROLES}
    database = ASSUMED["postgresql of a statement"]
    statement = {"postgresql": given["statements"] * database, "services": given["statements"] * (1 - database)}
    # At 100 a second a step carries 1.2 registrations (10 ms of them and the one that begins it), so that what the services
    # and PostgreSQL paid beyond the rest is this.
    shared = 1 + 100 * PACE / 1000 * 0.2
    of_services = (QUIET["services"] - sum(each[role] for role in SERVICES) - statement["services"]) * shared
    analytics = (QUIET_ANALYTICS - each["analytics-service"]) * shared
    step = {"analytics-service": analytics, "patient-service": of_services - analytics}
    step["kafka"] = given["step"] - of_services
    return each, statement, step


class Pool:
    """Cores with a queue."""

    def __init__(self, clock, cores):
        self.clock, self.cores, self.free = clock, cores, cores
        self.waiting, self.busy = collections.deque(), 0.0

    def run(self, time, then, *arguments):
        if self.free:
            self.free -= 1
            self.begin(time, then, arguments)
        else:
            self.waiting.append((time, then, arguments))

    def begin(self, time, then, arguments):
        self.busy += time
        self.clock.after(time, self.end, then, arguments)

    def end(self, then, arguments):
        if self.waiting:
            self.begin(*self.waiting.popleft())
        else:
            self.free += 1
        then(*arguments)


class Clock:
    def __init__(self):
        self.now, self.events, self.count = 0.0, [], 0

    def after(self, time, then, *arguments):
        self.count += 1
        heapq.heappush(self.events, (self.now + time, self.count, then, arguments))

    def step(self):
        self.now, _, then, arguments = heapq.heappop(self.events)
        then(*arguments)


class Batcher:
    """Requests that wait share a statement; at most two are under way. The service pays for it too, before the database."""

    def __init__(self, clock, service, service_own, database, own, each, disk):
        self.clock, self.service, self.service_own = clock, service, service_own
        self.database, self.own, self.each, self.disk = database, own, each, disk
        self.waiting, self.under_way, self.statements, self.requests = collections.deque(), 0, 0, 0
        self.then = None

    def submit(self, request):
        self.waiting.append(request)
        self.go()

    def go(self):
        if self.waiting and self.under_way < MAX_STATEMENTS:
            batch = [self.waiting.popleft() for _ in range(min(MAX_REQUESTS, len(self.waiting)))]
            self.under_way += 1
            self.statements += 1
            self.requests += len(batch)
            self.service.run(self.service_own, self.execute, batch)

    def execute(self, batch):
        self.database.run(self.own + self.each * len(batch), self.commit, batch)

    def commit(self, batch):
        self.clock.after(self.disk, self.end, batch)

    def end(self, batch):
        self.under_way -= 1
        for request in batch:
            self.then(request)
        self.go()


class Relay:
    """One shard: steps begin 10 ms apart and take up to 1,000 events; the next one waits for the broker."""

    def __init__(self, clock, own, kafka, analytics, each, step, applied):
        self.clock, self.own, self.kafka, self.analytics = clock, own, kafka, analytics
        self.each, self.step, self.applied = each, step, applied
        self.waiting, self.is_busy, self.next, self.steps = collections.deque(), False, 0.0, 0

    def add(self, request):
        self.waiting.append(request)
        self.go()

    def go(self):
        if self.is_busy or not self.waiting:
            return
        self.is_busy = True
        self.clock.after(max(0.0, self.next - self.clock.now), self.begin)

    def begin(self):
        self.next = self.clock.now + PACE
        self.steps += 1
        batch = [self.waiting.popleft() for _ in range(min(MAX_ROWS, len(self.waiting)))]
        self.own.run(self.step["patient-service"], self.send, batch)

    def send(self, batch):
        self.kafka.run(self.step["kafka"] + self.each["kafka"] * len(batch), self.end, batch)

    def end(self, batch):
        self.is_busy = False
        time = self.step["analytics-service"] + self.each["analytics-service"] * len(batch)
        self.analytics.run(time, self.apply, batch)
        self.go()

    def apply(self, batch):
        for request in batch:
            self.applied.append(self.clock.now - request)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


@dataclasses.dataclass
class Replica:
    """A replica of patient-service: its thread, and the statements that its requests share."""

    pool: Pool
    patients: Batcher
    accounts: Batcher


class System:
    """A system with some cores for each role, or on one machine that all share (`shared`)."""

    def __init__(self, *, shared=None, cores=None, replicas=1, shards=1, calibrated=None, seed=1):
        given = calibrated or CALIBRATED
        self.random, self.clock = random.Random(seed), Clock()
        self.each, statement, step = costs(given)
        self.is_shared = shared is not None
        if self.is_shared:
            machine = Pool(self.clock, shared)
            self.pools, own = {"machine": machine}, [machine] * replicas
            self.pool = lambda role: machine
        else:
            self.pools = {role: Pool(self.clock, number) for role, number in cores.items()}
            self.pool = self.pools.__getitem__
            # A replica runs its work on one thread (EXECUTOR_THREADS) and has batches of its own.
            own = [Pool(self.clock, 1) for _ in range(replicas)]
            self.pools |= {f"patient-service {index}": one for index, one in enumerate(own)}
        self.lasted, self.applied, self.finished, self.is_closed = [], [], 0, False
        kafka, analytics = self.pool("kafka"), self.pool("analytics-service")
        self.relays = [
            Relay(self.clock, own[shard % replicas], kafka, analytics, self.each, step, self.applied)
            for shard in range(shards)
        ]
        of_patients = ASSUMED["patients of statements"]
        self.replicas = [
            Replica(
                one,
                self.batcher("patients", one, statement, of_patients, given["disk"]),
                self.batcher("accounts", self.pool("billing-service"), statement, 1 - of_patients, given["disk"]),
            )
            for one in own
        ]
        for replica in self.replicas:
            replica.patients.then = functools.partial(self.stored, replica)
            replica.accounts.then = functools.partial(self.opened, replica)

    def batcher(self, database, service, statement, share, disk):
        own, each = statement["postgresql"] * share, self.each["postgresql"] * share
        return Batcher(self.clock, service, statement["services"] * share, self.pool(database), own, each, disk)

    def request(self):
        replica = self.random.choice(self.replicas)
        arguments = (self.each["patient-service"] * 0.6, replica.patients.submit, self.clock.now)
        if self.is_shared:
            # Where the clients use the same cores.
            replica.pool.run(self.each["load"], replica.pool.run, *arguments)
        else:
            replica.pool.run(*arguments)

    def commits(self):
        return sum(replica.patients.statements + replica.accounts.statements for replica in self.replicas)

    def stored(self, replica, request):
        self.random.choice(self.relays).add(request)
        self.pool("billing-service").run(self.each["billing-service"], replica.accounts.submit, request)

    def opened(self, replica, request):
        replica.pool.run(self.each["patient-service"] * 0.4, self.answer, request)

    def answer(self, request):
        self.lasted.append(self.clock.now - request)
        self.finished += 1
        if self.is_closed:
            self.request()

    def arrive(self, rate):
        self.request()
        self.clock.after(self.random.expovariate(rate / 1000), self.arrive, rate)

    def run(self, *, clients=None, rate=None, count=12_000, warm_up=3_000):
        """A closed loop of clients, or so many requests a second: what became of those after the warm-up."""
        self.is_closed = clients is not None
        if self.is_closed:
            for _ in range(clients):
                self.clock.after(self.random.random() * 10, self.request)
        else:
            self.arrive(rate)
        while self.finished < warm_up:
            self.clock.step()
        begun, busy = self.clock.now, {name: pool.busy for name, pool in self.pools.items()}
        committed = self.commits()
        self.lasted.clear()
        self.applied.clear()
        while self.finished < count:
            self.clock.step()
        time, done = self.clock.now - begun, count - warm_up
        used = {name: pool.busy - busy[name] for name, pool in self.pools.items()}
        return {
            "rate": done / time * 1000,
            "cpu": sum(used.values()) / done,
            "commits": (self.commits() - committed) / time * 1000,
            "p50": percentile(self.lasted, 0.50),
            "p99": percentile(self.lasted, 0.99),
            "applied": percentile(self.applied, 0.50),
            "used": {name: used[name] / time / self.pools[name].cores for name in used},
            "waiting": sum(len(relay.waiting) for relay in self.relays),
        }
