"""`Report`: what `Loader.report` returns.

Flow: JSON of `tidegate::Report` -> a dict; its text -> `print`.
Memory: holds none.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Report"]


class Report(dict[str, Any]):
    """What limits a loader, where every byte is, and what failed; made by `Loader.report`.

    `print(report)` shows it in words; `report["charged_bytes"]` and the other keys have the
    figures. Keys end in their unit. `tidegate.Report` is a dict of JSON-able values.

    >>> import tidegate as tg
    >>> report = tg.Loader(tg.synthetic(10, 8), batch_size=4, memory=tg.Budget("16MiB")).report()
    >>> report["budget_bytes"] >> 20
    16
    """

    text: str = ""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        if "limit" not in self:
            return f"Report({dict.__repr__(self)})"
        mib = [f"{self[name] / 2**20:.1f}" for name in ("charged_bytes", "budget_bytes", "peak_bytes")]
        return (
            f"Report({self['limit']!r}, {mib[0]} of {mib[1]} MiB charged, peak {mib[2]} MiB; "
            f"{len(self)} keys, print it for words)"
        )
