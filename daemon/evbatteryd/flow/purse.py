"""One application's calls: its bucket, its plan, and the durable note of each call before it is sent."""

from __future__ import annotations

from datetime import datetime, timedelta

from evbatteryd.domain.errors import ApplicationRateLimited, BudgetSpent, StoreError
from evbatteryd.domain.ledger import Bucket, Budget, Share, Window, window
from evbatteryd.domain.ports import Clock, Reservation, Store, Tally
from evbatteryd.domain.vehicle import VehicleId

SPARE = 1.0
"""Tokens never spent. Smartcar's bucket refills from when a request arrives there, ours from when it left."""


OURS = "BUDGET"
"""Code of errors that the purse raises by itself: nothing was sent."""


CREDENTIALS = (
    'client_id is the "client_..." of the API credentials at https://dashboard.smartcar.com, not the '
    "application's id; client_secret belongs to it"
)
"""What to mend when Smartcar refuses the application itself."""


class Purse:
    """The only way to a request: nobody asks Smartcar without a ticket of the application's purse."""

    def __init__(self, application: str, budget: Budget, store: Store, clock: Clock, tally: Tally) -> None:
        self.application = application
        self.budget = budget
        self._store = store
        self._clock = clock
        self._tally = tally
        self._window: Window | None = None
        self._spent: dict[VehicleId, int] = {}
        self._total = 0
        self._bucket = Bucket(float(budget.bucket), clock.now())
        self._closed: tuple[datetime, timedelta] | None = None
        self.cars = 0
        """Cars of the application that are asked at all: kept by whoever enrols and withdraws them."""

    async def open(self) -> None:
        """Take up what the store knows: calls of this period, and the bucket as it was left."""
        now = self._clock.now()
        period = window(self.budget, now)
        account = await self._store.account(self.application, period.start)
        self._window = period
        self._spent = dict(account.spent)
        self._total = sum(self._spent.values())
        if account.bucket is not None:
            # A bucket noted in the future (the clock was set back) counts as noted now.
            level = min(account.bucket.level, float(self.budget.bucket))
            self._bucket = Bucket(level, min(account.bucket.at, now))
        self._say()

    def ticket(
        self, vehicle_id: VehicleId | None, *, prepaid: bool = False, due: datetime | None = None
    ) -> PurseTicket:
        """Leave to ask for this car (None: for the application itself). ``prepaid``: a token is in hand."""
        return PurseTicket(self, vehicle_id, prepaid, due)

    async def token(self) -> None:
        """Take one token of the bucket, waiting until there is one."""
        while True:
            now = self._clock.now()
            wait = self.closed_for
            if not wait:
                self._bucket = self._bucket.now(self.budget, now)
                wait = self._bucket.wait(self.budget, 1.0 + min(SPARE, self.budget.bucket - 1.0))
                if not wait:
                    self._bucket = self._bucket.take()
                    return
            await self._clock.sleep(wait + timedelta(milliseconds=1))

    def give_back(self) -> None:
        """A token that was taken and is not needed after all."""
        self._bucket = self._bucket.take(-1.0)

    async def close(self, span: timedelta, *, emptied: bool = True) -> None:
        """Nobody asks for ``span``. ``emptied``: because Smartcar says that the bucket is empty.

        An empty bucket is kept for the next start.
        """
        now = self._clock.now()
        if span > self.closed_for:
            self._closed = (now, span)
        if emptied:
            self._bucket = Bucket(min(self._bucket.level, 0.0), now)
            await self._store.keep_bucket(self.application, self._bucket)
            self._say()

    @property
    def closed_for(self) -> timedelta:
        """How long nobody asks any more; never longer than was told, though the clock be set back."""
        if self._closed is None:
            return timedelta()
        since, span = self._closed
        rest = min(since + span - self._clock.now(), span)
        return max(rest, timedelta())

    def share(self, vehicle_id: VehicleId | None) -> Share:
        """What this car may have, now."""
        period = self._turn(self._clock.now())
        cars = max(self.cars, 1)
        if self.budget.pooled:
            # Rounded up: the last few calls are whoever's comes first.
            left = -(-max(self.budget.calls_per_vehicle * cars - self._total, 0) // cars)
        else:
            spent = self._spent.get(vehicle_id, 0) if vehicle_id is not None else 0
            left = max(self.budget.calls_per_vehicle - spent, 0)
        return Share(
            calls_left=left,
            calls=self.budget.calls_per_vehicle,
            began_at=period.start,
            renews_at=period.end,
            application_interval=timedelta(minutes=cars / self.budget.refill_per_minute),
            cars=cars,
            pool_spent=self._total if self.budget.pooled else None,
        )

    @property
    def tokens(self) -> float:
        """Requests that the bucket would let pass at once."""
        return self._bucket.now(self.budget, self._clock.now()).level

    def spent(self, vehicle_id: VehicleId) -> int:
        """Calls of this car in the present period."""
        self._turn(self._clock.now())
        return self._spent.get(vehicle_id, 0)

    async def exhausted(self, vehicle_id: VehicleId) -> None:
        """Smartcar says the calls are used up, whatever we counted: believe it until the period turns."""
        missing = self._left(vehicle_id)
        if missing > 0:
            period = self._turn(self._clock.now())
            calls = self._spent.get(vehicle_id, 0) + missing
            await self._store.correct(self.application, vehicle_id, period.start, calls)
            self._note(vehicle_id, missing)

    async def spend(self, vehicle_id: VehicleId | None, *, prepaid: bool, due: datetime | None) -> None:
        if vehicle_id is not None and self._left(vehicle_id) < 1:
            if prepaid:
                self.give_back()
            raise BudgetSpent(OURS, "the calls that the configured budget allows are used up")
        if rest := self.closed_for:
            if prepaid:
                self.give_back()
            raise ApplicationRateLimited(OURS, "the application's requests are used up", retry_after=rest)
        if not prepaid:
            await self.token()
        try:
            await self._reserve(vehicle_id, due)
        except StoreError:  # nothing was kept, so nothing is sent
            self.give_back()
            raise

    async def _reserve(self, vehicle_id: VehicleId | None, due: datetime | None) -> None:
        now = self._clock.now()
        period = self._turn(now)
        # Counted in memory first: two tickets at once must not both find the last call.
        self._note(vehicle_id, 1)
        reservation = Reservation(
            application=self.application,
            vehicle_id=vehicle_id,
            window_start=period.start,
            bucket=self._bucket,
            at=now,
            due=due,
        )
        try:
            await self._store.reserve(reservation)
        except StoreError:
            self._note(vehicle_id, -1)
            raise
        self._tally.called(self.application)

    def _left(self, vehicle_id: VehicleId) -> int:
        self._turn(self._clock.now())
        if self.budget.pooled:
            return self.budget.calls_per_vehicle * max(self.cars, 1) - self._total
        return self.budget.calls_per_vehicle - self._spent.get(vehicle_id, 0)

    def _turn(self, now: datetime) -> Window:
        """The present period; in a new one nothing is spent yet."""
        # A clock that is set back does not bring back the calls of the period before.
        if self._window is None or now >= self._window.end:
            self._window = window(self.budget, now)
            self._spent.clear()
            self._total = 0
            self._say()
        return self._window

    def _note(self, vehicle_id: VehicleId | None, calls: int) -> None:
        if vehicle_id is not None:
            self._spent[vehicle_id] = self._spent.get(vehicle_id, 0) + calls
            self._total += calls
        self._say()

    def _say(self) -> None:
        self._tally.budget(
            self.application, max(self.budget.calls_per_vehicle * max(self.cars, 1) - self._total, 0)
        )
        self._tally.bucket(self.application, max(self._bucket.level, 0.0))


class PurseTicket:
    """A :class:`~evbatteryd.domain.ports.Ticket`: counts what one poll costs."""

    def __init__(
        self, purse: Purse, vehicle_id: VehicleId | None, prepaid: bool, due: datetime | None
    ) -> None:
        self._purse = purse
        self._vehicle_id = vehicle_id
        self._prepaid = prepaid
        self._due = due
        self.calls = 0

    async def spend(self) -> None:
        prepaid, self._prepaid = self._prepaid, False
        due, self._due = self._due, None
        await self._purse.spend(self._vehicle_id, prepaid=prepaid, due=due)
        self.calls += 1

    def close(self) -> None:
        """Give back a token that was not used."""
        if self._prepaid:
            self._prepaid = False
            self._purse.give_back()
