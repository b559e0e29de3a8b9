# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether hardware has a domain id left for one more context, where there are few of them."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fuzz.domains import Domains
    from fuzz.shadow import Shadow
    from fuzz.target import Target


class DomainIds:
    """The ids that a unit has left, and who has them."""

    def __init__(self, free: int | None, domains: "Domains") -> None:
        self.free: Final = free
        """When a program begins; ``None``: more than it uses."""
        self._domains: Final = domains

    def ask(self, shadow: "Shadow", target: "Target") -> None:
        """Let ``shadow`` know, of these ids and of those that ``target`` made to be taken."""
        shadow.tagless = lambda: (target.faults is not None and target.faults.tag) or self.may_be_gone()
        shadow.out_of_tags = self.are_gone

    def are_gone(self) -> bool:
        """Whether contexts that guests made have every one of them."""
        return self.free is not None and self.free <= sum(len(of.spaces) for of in self._domains.shadows.values())

    def may_be_gone(self) -> bool:
        """The same, if nobody can tell: default contexts, quarantine, and what was not confirmed have ids too."""
        shadows, away = self._domains.shadows, self._domains.away
        others = len(shadows) > 1 or bool(away) or any(shadow.unsure for shadow in shadows.values())
        return self.are_gone() or (self.free is not None and others)
