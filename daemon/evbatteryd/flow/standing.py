"""How the applications stand with Smartcar: what an answer to one car means for all of its application."""

from __future__ import annotations

from datetime import timedelta

from evbatteryd.domain.errors import ApplicationRateLimited, ApplicationRefused, BudgetSpent, SourceError
from evbatteryd.domain.ports import Log
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.purse import CREDENTIALS, OURS, Purse

APPLICATION_PAUSE = timedelta(minutes=1)
"""How long an application waits that is rate limited without being told for how long."""


class Standing:
    """Closes purses that Smartcar says are empty, and believes it about calls; says so once."""

    def __init__(self, cars: Cars, log: Log) -> None:
        self._cars = cars
        self._log = log
        self._refused: set[str] = set()

    async def heard(self, vehicle_id: VehicleId, purse: Purse, error: SourceError | None) -> None:
        """Its source answered for this car; ``error``: None if it did as it was asked."""
        match error:
            case ApplicationRateLimited(code=code, retry_after=told) if code != OURS:
                pause, was_open = told or APPLICATION_PAUSE, not purse.closed_for
                await self._cars.kept(lambda: purse.close(pause))
                if was_open:
                    self._log.warning(
                        "application.rate_limited",
                        application=purse.application,
                        wait_s=pause.total_seconds(),
                    )
            case ApplicationRefused(code=code):
                await purse.close(APPLICATION_PAUSE, emptied=False)
                if purse.application not in self._refused:
                    self._refused.add(purse.application)
                    self._log.error(
                        "application.refused", application=purse.application, code=code, mend=CREDENTIALS
                    )
            case BudgetSpent(code=code) if code != OURS:
                await self._cars.kept(lambda: purse.exhausted(vehicle_id))
            case None if purse.application in self._refused:
                self._refused.remove(purse.application)
                self._log.info("application.accepted", application=purse.application)
