"""How a notebook judges: predictions against measurements, checks that stop a run, verdicts on claims."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from quantlib.errors import StudyError
from quantlib.study import results
from quantlib.study.manifest import Course

VERDICTS = ("holds", "holds with limits", "fails")
"""What can become of a claim."""
FEW = 1000
"""Images; a goal is not judged by fewer."""


class Judging:
    """The part of a session that judges; what it decides goes into scores_NN.csv and claims_NN.csv."""

    def __init__(self, course: Course, number: str, profile: str) -> None:
        self.course, self.number, self.profile = course, number, profile

    def score(self, name: str, predicted: float, measured: float, within: float, unit: str = "") -> bool:
        """Print and record a prediction beside its measurement; a wrong one stays and stops nothing."""
        right = bool(abs(predicted - measured) <= within)
        print(
            f"predicted {predicted:.4g}{_unit(unit)} | measured {measured:.4g}{_unit(unit)} | within: {right}"
        )
        entry = {
            "name": name, "predicted": float(predicted), "measured": float(measured),
            "tolerance": float(within), "within": right, "unit": unit,
        }  # fmt: skip
        # One by one: a run that is stopped after its first prediction must not cost the others.
        results.upsert(self._path("scores"), pd.DataFrame([entry]), "name")
        return right

    def check(self, sentence: str, truth: object) -> None:
        """Print "checked: ..." when it is true; AssertionError otherwise, which stops the run."""
        if not bool(truth):
            raise AssertionError(f"not so: {sentence}")
        print(f"checked: {sentence}")

    def goal(self, reached: object, n: float) -> str:
        """What became of a goal, in words; fewer than FEW images judge none."""
        if n < FEW:
            return f"not judged by {int(n):,} images"
        return "met" if reached else "missed"

    def claim(self, identity: str, verdict: str, evidence: str) -> None:
        """Record what became of one of the field's claims; `verdict` is one of VERDICTS."""
        claim = self.course.claim(identity)
        if claim.notebook != self.number:
            raise StudyError(
                f"Claim {identity!r} is settled in notebook {claim.notebook}, not in {self.number}."
            )
        if verdict not in VERDICTS:
            raise StudyError(f"There is no verdict {verdict!r}; choose one of {', '.join(VERDICTS)}.")
        entry = {"id": identity, "text": claim.text, "verdict": verdict, "evidence": evidence}
        results.upsert(self._path("claims"), pd.DataFrame([entry]), "id")
        print(f'"{claim.text}" {verdict}: {evidence}')

    def _path(self, kind: str) -> Path:
        return results.folder(self.profile, self.course.root) / f"{kind}_{self.number}.csv"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""
