"""Tables in, the same rows with answers out: a callable that any engine may hold.

Nothing here knows an engine. Ray Data, Daft, Dask and Spark's mapInArrow hand over Arrow tables;
so does whoever reads Parquet. Every answer has one schema, whether something failed or not.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import HUB_PREFIX
from vit_edge.errors import UsageError
from vit_edge.predictor import DEFAULT_TOP_K, TOP, Answer, Failure, Predictor
from vit_edge.scale import COLUMNS
from vit_edge.scale.remote import RemoteFile, is_url, local_path
from vit_edge.scale.suspects import Suspects

if TYPE_CHECKING:
    from vit_edge.images.files import ImageLike

RANKED = pa.struct([("label", pa.string()), ("index", pa.int32()), ("score", pa.float32())])
_OF_TOP: dict[str, pa.DataType] = {
    "label": pa.string(), "index": pa.int32(), "score": pa.float32(), "top": pa.list_(RANKED),
}  # fmt: skip
ERROR = "error"
_IMAGES = ("bytes", "image", "path")  # the column of the images, where nobody names it


@dataclass(eq=False)
class _Work:
    """A table whose images are being answered."""

    table: pa.Table
    schema: pa.Schema  # of the answers
    images: Sequence[ImageLike | None]
    note: Path | None

    @property
    def there(self) -> list[ImageLike]:
        """The images, without the cells that have none."""
        return [image for image in self.images if image is not None]


class Classifier:
    """Answers the images of a table; every row stays in its place.

    >>> classify = Classifier("bundles/cifar10", columns=("label", "features"))  # doctest: +SKIP
    >>> classify(pa.table({"path": ["cat.jpg", "broken.jpg"]}))["error"]  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        columns: Sequence[str] = COLUMNS,
        images: str | None = None,
        keep_images: bool = False,
        prefix: str = "",
        top_k: int = DEFAULT_TOP_K,
        threads: int | None = 1,
        batch_size: int = 64,
        backend: str = "auto",
        suspects: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open a bundle.

        Args:
            bundle: Its directory.
            columns: What to add: label, index, score, top (a list of the best), and names of the
                bundle's outputs, such as features. `error` is always added.
            images: The column with the images: encoded bytes, paths, or a struct of both, as
                datasets has it. By default the first of bytes, image, path that is there.
            keep_images: Keep that column where it holds bytes, too.
            prefix: In front of the names of what is added.
            top_k: How many classes `top` ranks.
            threads: Of decoder and runtime; an engine that runs several of these wants 1.
            batch_size: At most; the bundle's max batch is the limit.
            backend: As of Predictor.
            suspects: A folder where the batch in work is noted. If an image kills the process, the
                next process that meets the batch there finds out which one, and names it.

        Raises:
            UsageError: A column that the bundle does not have.
            VitEdgeError: As Predictor.
        """
        self._arguments: dict[str, Any] = {
            "bundle": everywhere(bundle), "columns": tuple(columns), "images": images,
            "keep_images": keep_images, "prefix": prefix, "top_k": top_k, "threads": threads,
            "batch_size": batch_size, "backend": backend, "suspects": suspects,
        }  # fmt: skip
        for option, number in (("top_k", top_k), ("batch_size", batch_size)):
            if type(number) is not int or number < 1:
                raise UsageError(f"{option} must be a whole number from 1 on, not {number!r}")
        self._images, self._keep, self._top_k = images, keep_images, top_k
        self._suspects: Suspects | None = None
        if suspects is not None:
            opener = partial(_from_arguments, {**self._arguments, "suspects": None})
            self._suspects = Suspects(Path(suspects), opener)
        self.bundle = Bundle.read(bundle)
        self._added = added_fields(self.bundle, columns, prefix)
        self._columns = tuple(columns)
        self._predictor = Predictor(self.bundle, backend, threads=threads)
        self._batch = min(batch_size, self.bundle.manifest.max_batch)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process reopens the bundle."""
        return _from_arguments, (self._arguments,)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Answer every row.

        Args:
            table: With a column of images.

        Returns:
            The same rows in the same order, with the columns that were asked for; their schema is
            that of `schema`. A row whose image cannot be used has nulls there, and its error.

        Raises:
            UsageError: There is no column of images, or one has a name that is to be added.
            PredictionError: The model answers NaN; or an image killed the process before: its name.
        """
        return next(self.stream([table]))

    def stream(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Answer tables in order; images of the next are decoded while the model runs.

        Args:
            tables: Read as the answers are consumed, at most three batches of images ahead.
        """
        waiting: deque[_Work] = deque()

        def images() -> Iterator[ImageLike]:
            for table in tables:
                work = self._begun(table)
                waiting.append(work)
                yield from work.there

        outputs = [column for column in self._columns if column not in _OF_TOP]
        if any(column in _OF_TOP for column in self._columns):
            outputs.append(TOP)
        answers = self._predictor.run(
            images(), outputs or [self.bundle.manifest.outputs[0].name], top_k=self._top_k,
            batch_size=self._batch, on_error="record",
        )  # fmt: skip
        collected: deque[Answer | Failure] = deque()
        try:
            for answer in chain(answers, (None,)):
                if answer is not None:
                    collected.append(answer)
                while waiting and len(collected) >= len(waiting[0].there):
                    yield self._finished(waiting.popleft(), collected)
        finally:
            for work in waiting:
                self._remove(work.note)

    def _begun(self, table: pa.Table) -> _Work:
        """Take the images out, and note that they are in work."""
        schema = self.schema(table.schema)
        column = image_column(table.schema, self._images)
        images = [_image(value) for value in table[column].to_pylist()]
        note = self._suspects.note(table, images, column) if self._suspects else None
        return _Work(table, schema, images, note)

    def _remove(self, note: Path | None) -> None:
        if self._suspects and note:
            self._suspects.remove(note)

    def _finished(self, work: _Work, answers: deque[Answer | Failure]) -> pa.Table:
        """Put the answers beside the rows."""
        outcomes = [None if image is None else answers.popleft() for image in work.images]
        self._remove(work.note)
        kept = [field.name for field in work.schema if field.name in work.table.schema.names]
        columns = [work.table[name] for name in kept]
        for column, field in zip((*self._columns, ERROR), self._added, strict=True):
            columns.append(_array([_value(outcome, column) for outcome in outcomes], field.type))
        return pa.Table.from_arrays(columns, schema=work.schema)

    def schema(self, given: pa.Schema) -> pa.Schema:
        """The schema of the answers to tables of a schema.

        Raises:
            UsageError: As of a call.
        """
        name = image_column(given, self._images)
        dropped = not self._keep and not _is_text(given.field(name).type)
        kept = [field for field in given if not (field.name == name and dropped)]
        if both := {field.name for field in kept} & {field.name for field in self._added}:
            raise UsageError(
                f"the table has a column {sorted(both)[0]!r} already; give a prefix, such as "
                'prefix="predicted_"'
            )
        return pa.schema([*kept, *self._added], metadata=given.metadata)

    @property
    def facts(self) -> Mapping[str, str]:
        """What really runs; see Predictor."""
        return self._predictor.facts

    def close(self) -> None:
        """Give the runtime back."""
        self._predictor.close()


def everywhere(bundle: str | os.PathLike[str]) -> str:
    """The path of a bundle for a process with another working directory; `hf:` stays as it is."""
    text = os.fspath(bundle)
    return text if text.startswith(HUB_PREFIX) else str(Path(text).absolute())


def added_fields(bundle: Bundle, columns: Sequence[str], prefix: str = "") -> list[pa.Field]:
    """Name and type what is added to a table.

    Raises:
        UsageError: A column that the bundle does not have, or one twice.
    """
    manifest, fields = bundle.manifest, []
    if isinstance(columns, str) or len(set(columns)) != len(columns):
        raise UsageError(f"columns must be a list of different names, not {columns!r}")
    for column in columns:
        kind = _OF_TOP.get(column)
        if kind is None:
            output = manifest.output(column)
            if output is None:
                there = [*_OF_TOP, *(tensor.name for tensor in manifest.outputs)]
                raise UsageError(f"{bundle.path} has no {column!r}; there is: {', '.join(there)}")
            size = 1
            for extent in output.shape[1:]:
                size *= extent or 1
            kind = pa.list_(pa.float32(), size)
        elif not manifest.num_classes:
            raise UsageError(f"{bundle.path} has no head, so no {column}; ask for features")
        fields.append(pa.field(prefix + column, kind))
    return [*fields, pa.field(prefix + ERROR, pa.string())]


def image_column(schema: pa.Schema, named: str | None) -> str:
    """Name the column of the images.

    Raises:
        UsageError: There is none, or it holds something else.
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise UsageError(f"the table has two columns {twice[0]!r}; rename one")
    listed = [name for name in _IMAGES if name in schema.names]
    fitting = [name for name in listed if _holds_images(schema.field(name).type)]
    name = named or next(iter([*fitting, *listed]), None)
    if name is None or name not in schema.names:
        raise UsageError(
            f"no column {named or ' or '.join(_IMAGES)} of images; there is: "
            f"{', '.join(schema.names)}. Name one with --images"
        )
    kind = schema.field(name).type
    if not _holds_images(kind):
        raise UsageError(f"column {name!r} is {kind}; images are encoded bytes, or paths")
    return name


def _holds_images(kind: pa.DataType) -> bool:
    """Tell encoded bytes, paths, and a struct of both from everything else."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind if field.name in ("bytes", "path")}
        return bool(fields) and all(map(_holds_images, fields.values()))
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_of = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return _is_text(kind) or pa.types.is_null(kind) or any(test(plain) for test in is_of)


def _image(value: Any) -> ImageLike | None:
    """The image of a cell."""
    if isinstance(value, dict):
        data = value.get("bytes")
        value = value.get("path") if data is None else data
    if isinstance(value, str) and is_url(value):
        return local_path(value) or cast("ImageLike", RemoteFile(value))
    image: ImageLike | None = value
    return image


def _value(outcome: Answer | Failure | None, column: str) -> Any:
    """One cell."""
    if isinstance(outcome, Answer):
        if column == ERROR:
            return None
        prediction = outcome.prediction
        if column not in _OF_TOP or prediction is None:
            return outcome.outputs[column].reshape(-1)
        if column == "top":
            return [vars(ranked) for ranked in prediction.top]
        return getattr(prediction, column)
    if column != ERROR:
        return None
    if outcome is None:
        return "ImageDecodeError: no image: the cell is null"
    return f"{type(outcome.error).__name__}: {outcome.error}"


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column; vectors are not taken apart into Python's floats."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    import numpy as np

    missing = np.array([value is None for value in values], bool)
    flat = np.zeros((len(values), kind.list_size), np.float32)
    for row, value in enumerate(values):
        if value is not None:
            flat[row] = value
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat.reshape(-1)), type=kind, mask=pa.array(missing)
    )


def _is_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_of = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(plain) for test in is_of)


def _from_arguments(arguments: dict[str, Any]) -> Classifier:
    return Classifier(**arguments)
