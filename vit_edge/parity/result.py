"""What a comparison found, as `vit-edge parity --out` writes it.

docs/parity.md describes the result. `vit_edge.strict` reads and writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeAlias

from vit_edge.parity.limits import Limit
from vit_edge.parity.targets import LOGITS, NON_FINITE, STATISTICS, Proof, Target, decides
from vit_edge.strict import Keys, Rest

# 2 is the parity.json of a bundle, which holds one comparison (parity.compare.as_json).
SCHEMA_VERSION: Final = 3

PASS: Final = "pass"
FAIL: Final = "fail"
INCONCLUSIVE: Final = "inconclusive"
DIED: Final = "died"

Status: TypeAlias = Literal["pass", "fail", "inconclusive"]
Verdict: TypeAlias = Literal["pass", "fail", "inconclusive", "died"]
Bounds: TypeAlias = Annotated[Mapping[str, float], Keys(frozenset(STATISTICS))]
Choice: TypeAlias = tuple[int, float | None]  # a class and its logit, None where it is not finite


@dataclass(frozen=True)
class BundleFacts:
    """Which bundle it was."""

    name: str
    variant: str
    precision: str
    model_sha256: str
    model_bytes: int


@dataclass(frozen=True)
class GoldenFacts:
    """Which images and answers it was compared with."""

    name: str
    sha256: str
    images: int
    reference_dtype: str


_SUMMARY = Rest(
    {"images": int, NON_FINITE: int},
    dict.fromkeys((*STATISTICS, "reference_margin_median"), float | None)
    | {s.interval: tuple[float, float] | None for s in STATISTICS.values() if s.interval}
    | {"flips": int | None, "labelled": int | None},
)


@dataclass(frozen=True)
class Row:
    """An output at a batch size."""

    output: str
    batch: int
    summary: Annotated[Mapping[str, Any], _SUMMARY]  # of a Difference or LogitComparison, by name

    def __post_init__(self) -> None:
        """Refuse a rate without what it is judged by."""
        for name, statistic in STATISTICS.items():
            if statistic.interval is None or self.summary.get(name) is None:
                continue
            for key in (statistic.interval, statistic.trials):
                if self.summary.get(key) is None:
                    raise ValueError(f"has {name}, but no {key}")
        decided = self.output == LOGITS and decides(self.summary)
        if decided and self.summary.get("top1_agreement") is None:
            raise ValueError("has reference_margin_median, but no top1_agreement")

    @property
    def images(self) -> int:
        """How many images were compared."""
        return int(self.summary["images"])

    @property
    def non_finite(self) -> int:
        """How many values are NaN or Inf."""
        return int(self.summary[NON_FINITE])

    @property
    def place(self) -> str:
        """Output and batch size in words."""
        return f"{self.output}, batch {self.batch}"


@dataclass(frozen=True)
class Finding:
    """One bound, held against one output at one batch size."""

    output: str
    batch: int
    statistic: str
    rule: Literal["limit", "target"]
    status: Status
    words: str  # empty where it holds


@dataclass(frozen=True)
class RowProof(Proof):
    """Whether a bound on a rate holds, of one output at one batch size."""

    output: str
    batch: int


@dataclass(frozen=True)
class Check:
    """A question beside the statistics, and its answer."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class ImageAnswers:
    """Both answers to one image."""

    index: int
    name: str
    reference: tuple[Choice, ...]
    candidate: tuple[Choice, ...]
    kl: float | None  # None where it is infinite
    relative_margin: float | None  # 0 without a flip; None where the reference does not vary


@dataclass(frozen=True)
class Scatter:
    """Pairs of logits."""

    reference: tuple[float, ...] = ()
    candidate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what are no pairs."""
        if len(self.reference) != len(self.candidate):
            raise ValueError(f"has {len(self.reference)} and {len(self.candidate)} values")


@dataclass(frozen=True)
class Block:
    """How far the candidate lies from the reference after a block."""

    tap: str
    sqnr_db: float | None


@dataclass(frozen=True)
class StoredLimit:
    """What `Limit.as_dict` wrote; without bounds where a run died before it knew them."""

    logits: Bounds = field(default_factory=dict)
    others: Bounds = field(default_factory=dict)
    top1_agreement_surely_below: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Memory:
    """What the child needed."""

    limit_bytes: int | None
    limited_by: str | None = None
    peak_rss_bytes: int | None = None
    peak_anonymous_bytes: int | None = None


@dataclass(frozen=True)
class Seconds:
    """How long it took."""

    total: float
    running: float  # of it inside the backend


@dataclass(frozen=True)
class Run:
    """What one backend's child found, or how it died."""

    name: str
    verdict: Verdict
    problems: tuple[str, ...]
    open_questions: tuple[str, ...]
    death: str | None
    facts: Mapping[str, str]
    simulated: str | None
    limit: StoredLimit
    limit_reason: str
    target: Bounds | None
    comparisons: tuple[Row, ...]
    checks: tuple[Check, ...]
    images: tuple[ImageAnswers, ...]
    scatter: Scatter
    blocks: tuple[Block, ...] | None
    localized: str | None
    memory: Memory
    seconds: Seconds
    proofs: tuple[RowProof, ...] = ()
    findings: tuple[Finding, ...] = ()  # files of 0.1.0 have none: parity.report.read judges them

    @property
    def failures(self) -> list[str]:
        """How it died, or what exceeds the limit or misses the target."""
        return [*([] if self.death is None else [self.death]), *self.problems]

    def findings_of(self, row: Row) -> list[Finding]:
        """What was found of an output at a batch size."""
        place = (row.output, row.batch)
        return [finding for finding in self.findings if (finding.output, finding.batch) == place]

    def held_against(self) -> Limit:
        """The limit; one without bounds where it died first."""
        logits, others = (Target(tuple(b.items())) for b in (self.limit.logits, self.limit.others))
        return Limit(logits, others, self.limit_reason, self.limit.top1_agreement_surely_below)

    def target_of(self, output: str) -> Target | None:
        """What was asked of an output besides: only of the logits, where there are any."""
        outputs = {row.output for row in self.comparisons}
        if self.target is None or (output != LOGITS and LOGITS in outputs):
            return None
        return Target(tuple(self.target.items()))


@dataclass(frozen=True)
class Result:
    """Backends compared with the reference on one machine."""

    schema_version: Literal[3]
    tool: str
    created: str
    machine: Mapping[str, str]
    bundle: BundleFacts
    against: BundleFacts | None
    golden: GoldenFacts
    runs: tuple[Run, ...]

    @property
    def reference(self) -> str:
        """Whose answers the others were compared with, in words."""
        dtype = self.golden.reference_dtype
        return (
            f"the {dtype} reference" if self.against is None else f"{self.against.name} ({dtype})"
        )


def exit_code(results: Sequence[Result], *, strict: bool) -> int:
    """0 where all holds, 4 where something failed or died, or is open while `strict`."""
    verdicts = {run.verdict for result in results for run in result.runs}
    refused = {FAIL, DIED} | ({INCONCLUSIVE} if strict else set())
    return 4 if verdicts & refused or not verdicts else 0
