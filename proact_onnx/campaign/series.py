"""The trials of a campaign, given out in blocks and taken back in order.

Which trials there are follows from the results of those before them, in the order of their
numbers, and from nothing else: not from who runs them, nor from the order in which they come back.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from proact_onnx.campaign.executor import Block, Crew
from proact_onnx.campaign.plan import PILOT_IMAGES, PILOT_TRIALS
from proact_onnx.campaign.store import TrialResult

Results = Sequence[TrialResult]


class Series:
    """The trials of one fault model.

    Args:
        fault: Its name in the record.
        most: Trials after which it ends in any case.
        images: Images of every trial, 0 for all; None where a pilot decides.
        choose: What the pilot decides; asked after its last trial.
        stops: Numbers of trials after which to look whether they are enough.
        enough: Whether they are.

    Attributes:
        done: Finished trials in the order of their numbers, none missing between them.
        ended: Whether no trial is to come.
    """

    def __init__(
        self,
        fault: str,
        most: int,
        images: int | None,
        choose: Callable[[Results], int] = lambda _: 0,
        stops: Iterable[int] = (),
        enough: Callable[[Results], bool] = lambda _: False,
    ) -> None:
        self.fault, self.most = fault, most
        self.done: list[TrialResult] = []
        self.ended = not most
        self._images, self._choose, self._enough = images, choose, enough
        self._stops = deque(sorted(stop for stop in stops if stop < most))
        self._back: dict[int, TrialResult] = {}
        self._recorded: frozenset[int] = frozenset()
        self._next = 0

    @property
    def left(self) -> int:
        """Trials that were not given out, if it goes on to the end."""
        return 0 if self.ended else self.most - self._next

    def take_up(self, recorded: Results) -> None:
        """Start from trials of a record; they are not given out."""
        self._recorded = frozenset(result.trial for result in recorded)
        self.receive(recorded)

    def take(self, size: int, places: int, *, ahead: bool) -> Block | None:
        """Give out trials.

        Args:
            size: How many, at most.
            places: Among how many blocks those before the next decision are to be shared.
            ahead: Whether to go beyond the next look, which may find them superfluous.

        Returns:
            None if none can be given out now.
        """
        limit = self._limit(ahead)
        self._skip_recorded(limit)
        if limit < self.most:
            size = min(size, math.ceil((limit - self._next) / places))
        trials: list[int] = []
        while not self.ended and self._next < limit and len(trials) < size:
            trials.append(self._next)
            self._next += 1
            self._skip_recorded(limit)
        if not trials:
            return None
        return Block(self.fault, tuple(trials), self._images_now)

    def receive(self, results: Results) -> None:
        """Take results back, in any order."""
        if not self.ended:
            self._back.update((result.trial, result) for result in results)

    def due(self) -> Iterator[TrialResult]:
        """Yield the results whose turn has come, and decide what they decide."""
        while not self.ended and len(self.done) in self._back:
            result = self._back.pop(len(self.done))
            self.done.append(result)
            count = len(self.done)
            if count == PILOT_TRIALS and self._images is None:
                self._images = self._choose(self.done)
            while self._stops and self._stops[0] < count:
                self._stops.popleft()
            stop = bool(self._stops) and self._stops[0] == count and self._enough(self.done)
            if stop or count == self.most:
                self.ended = True
                self._back.clear()
            yield result

    @property
    def _images_now(self) -> int:
        return PILOT_IMAGES if self._images is None else self._images

    def _limit(self, ahead: bool) -> int:
        """Number of the trial that cannot be given out yet."""
        if self._images is None and self.most > PILOT_TRIALS:
            return PILOT_TRIALS
        if ahead:
            return self.most
        return next((stop for stop in self._stops if stop > len(self.done)), self.most)

    def _skip_recorded(self, limit: int) -> None:
        while self._next < limit and self._next in self._recorded:
            self._next += 1


class Dispatch:
    """Gives the trials of several series to a crew, as many at once as it can take.

    Where the first series has to wait for a decision, the next ones go on, and only when there is
    nothing else are trials given out that may prove superfluous.

    Args:
        series: In the order in which their results are wanted.
        crew: Who runs the trials.
        recorded: Trials that need not be run.
    """

    def __init__(
        self,
        series: Sequence[Series],
        crew: Crew,
        recorded: Mapping[tuple[str, int], TrialResult],
    ) -> None:
        self._crew = crew
        self._series = {one.fault: one for one in series}
        self._open = deque(series)
        known: dict[str, list[TrialResult]] = {}
        for result in recorded.values():
            known.setdefault(result.fault, []).append(result)
        for one in series:
            one.take_up(known.get(one.fault, ()))

    def results(self, one: Series) -> Iterator[TrialResult]:
        """Yield the results of a series, in the order of its trials, until it ends."""
        yield from one.due()
        while not one.ended:
            self._give_out()
            answer = self._crew.collect()
            if answer is not None:
                self._series[answer.block.fault].receive(answer.results)
                yield from one.due()

    def _give_out(self) -> None:
        while self._crew.free > 0:
            block = self._take()
            if block is None:
                return
            self._crew.submit(block)

    def _take(self) -> Block | None:
        while self._open and not self._open[0].left:
            self._open.popleft()
        places = max(1, self._crew.places)
        # The last blocks become smaller, so that all workers end at about the same time.
        size = self._crew.block_size
        if size > 1:
            size = min(size, math.ceil(sum(one.left for one in self._open) / places))
        for ahead in (False, True):
            for one in self._open:
                block = one.take(size, places, ahead=ahead)
                if block is not None:
                    return block
        return None
