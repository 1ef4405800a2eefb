"""LeadingRunner: the runner of rank 0, whose steps run on all ranks."""

from __future__ import annotations

from chiplet.errors import EngineError
from chiplet.ranks.company import Company
from chiplet.runner.runner import LaunchedStep, ModelRunner
from chiplet.step import StepPlan, StepResult


class LeadingRunner:
    """Runs plans on all ranks; see `chiplet.step.Runner`.

    A step that fails anywhere ends the engine: nobody knows at which collective the others stand.
    """

    def __init__(self, runner: ModelRunner, company: Company) -> None:
        """Lead a company.

        Args:
            runner: of this rank; tells the company what it does.
            company: the other ranks.
        """
        self._runner = runner
        self._company = company
        self._is_out_of_step = False

    def launch(self, plan: StepPlan) -> LeadingStep:
        """Start one step on all ranks.

        Raises:
            EngineError: it failed here, or on another rank.
        """
        if self._is_out_of_step:
            raise EngineError("A step was interrupted while other ranks ran it; they cannot go on.")
        self._is_out_of_step = True
        try:
            step = self._runner.launch(plan)
        except (Exception, SystemExit) as error:
            raise self._company.explain(error) from error
        self._is_out_of_step = False
        return LeadingStep(step, self._company)


class LeadingStep:
    """A step in flight on all ranks; see `chiplet.step.PendingStep`."""

    def __init__(self, step: LaunchedStep, company: Company) -> None:
        """A step and who runs it too."""
        self._step = step
        self._company = company

    def is_done(self) -> bool:
        """Whether this rank is done with it."""
        return self._step.is_done()

    def wait(self) -> StepResult:
        """The step's result; blocks until this rank has finished it."""
        try:
            return self._step.wait()
        except Exception as error:
            raise self._company.explain(error) from error
