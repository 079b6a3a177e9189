"""What an answer must be like to become a document."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnswersConfig:
    """Checks of each answer on its own. Lengths are in characters; the limits hold for every language."""

    min_problem_chars: int = 20
    """A shorter problem is asked for again."""
    max_problem_chars: int = 4000
    """A longer problem is rejected."""
    min_solution_chars: int = 80
    """A shorter solution is asked for again."""
    max_solution_chars: int = 12_000
    """A longer solution is rejected."""
    check_language: bool = True
    """Reject answers that are not in the prompt's language (en and zh are known)."""
    max_copied_share: float = 0.5
    """Largest share of an answer's word 13-grams that may stand in the snippet."""
    max_repeated_share: float = 0.3
    """Largest share of an answer's word 8-grams that have been in it before: models that turn in circles."""

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        where, found = "answers", []
        for name in ("problem", "solution"):
            low, high = getattr(self, f"min_{name}_chars"), getattr(self, f"max_{name}_chars")
            if not 1 <= low <= high:
                found.append(f"{where}: min_{name}_chars {low} to max_{name}_chars {high} holds no length")
        for name in ("max_copied_share", "max_repeated_share"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{where}.{name}: {getattr(self, name)} is not between 0 and 1")
        return found
