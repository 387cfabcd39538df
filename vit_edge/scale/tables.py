"""Tables in, the same rows with answers out: a callable that any engine may hold.

Nothing here knows an engine. Ray Data, Daft, Dask and Spark's mapInArrow hand over Arrow tables;
so does whoever reads Parquet. Every answer has one schema, whether something failed or not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from vit_edge.bundle import Bundle
from vit_edge.errors import PredictionError, UsageError, VitEdgeError
from vit_edge.machine import child
from vit_edge.predictor import DEFAULT_TOP_K, TOP, Answer, Failure, Predictor
from vit_edge.scale.remote import RemoteFile, is_url

if TYPE_CHECKING:
    from vit_edge.images.files import ImageLike

COLUMNS = ("label", "index", "score")  # by default
RANKED = pa.struct([("label", pa.string()), ("index", pa.int32()), ("score", pa.float32())])
_OF_TOP: dict[str, pa.DataType] = {
    "label": pa.string(), "index": pa.int32(), "score": pa.float32(), "top": pa.list_(RANKED),
}  # fmt: skip
ERROR = "error"
_IMAGES = ("bytes", "image", "path")  # the column of the images, where nobody names it
_SUSPECT = "vit-edge-suspect-"
_TRIAL_TIMEOUT_S = 600.0


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
            "bundle": os.fspath(bundle), "columns": tuple(columns), "images": images,
            "keep_images": keep_images, "prefix": prefix, "top_k": top_k, "threads": threads,
            "batch_size": batch_size, "backend": backend, "suspects": suspects,
        }  # fmt: skip
        self._images, self._keep, self._top_k = images, keep_images, top_k
        self._suspects = None if suspects is None else Path(suspects)
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
        name = image_column(table.schema, self._images)
        schema = self.schema(table.schema)
        values = table[name].to_pylist()
        with self._noted(table, values):
            outcomes = self._outcomes([_image(value) for value in values])
        kept = [field.name for field in schema if field.name in table.schema.names]
        columns = [table[field] for field in kept]
        for column, field in zip((*self._columns, ERROR), self._added, strict=True):
            values = [_value(outcome, column) for outcome in outcomes]
            columns.append(_array(values, field.type))
        return pa.Table.from_arrays(columns, schema=schema)

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

    def _outcomes(self, images: Sequence[ImageLike | None]) -> list[Answer | Failure | None]:
        """One outcome an image; None where there is no image."""
        there = [image for image in images if image is not None]
        outputs = [column for column in self._columns if column not in _OF_TOP]
        if any(column in _OF_TOP for column in self._columns):
            outputs.append(TOP)
        answers = self._predictor.run(
            there, outputs or ["logits"], top_k=self._top_k, batch_size=self._batch,
            on_error="record",
        )  # fmt: skip
        return [None if image is None else next(answers) for image in images]

    @contextmanager
    def _noted(self, table: pa.Table, values: Sequence[Any]) -> Iterator[None]:
        """Note a batch while it is in work; examine one that was in work when a process died."""
        if self._suspects is None:
            yield
            return
        self._suspects.mkdir(parents=True, exist_ok=True)
        note = self._suspects / f"{_SUSPECT}{_digest(values)}"
        if note.exists() and not _alive(note):
            killer = find_killer(self._arguments, table)
            note.unlink(missing_ok=True)
            if killer is not None:
                raise PredictionError(f"{killer}: the process died of this image; leave it out")
        note.write_text(str(os.getpid()))
        yield
        note.unlink(missing_ok=True)


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
    name = named or next((name for name in _IMAGES if name in schema.names), None)
    if name is None or name not in schema.names:
        raise UsageError(
            f"no column {named or ' or '.join(_IMAGES)} of images; there is: "
            f"{', '.join(schema.names)}. Name one with images="
        )
    kind = schema.field(name).type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    struct = pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}
    if not (binary or struct or _is_text(kind)):
        raise UsageError(f"column {name!r} is {kind}; images are encoded bytes, or paths")
    return name


def find_killer(arguments: dict[str, Any], table: pa.Table) -> str | None:
    """Name the image of which a process dies, each half of the rows in a process of its own."""
    if not _dies(arguments, table):
        return None
    while table.num_rows > 1:
        half = table.slice(0, table.num_rows // 2)
        table = half if _dies(arguments, half) else table.slice(table.num_rows // 2)
    return _name_of(table, image_column(table.schema, arguments["images"]))


def answer_rows(arguments: dict[str, Any], table: pa.Table) -> None:
    """Answer rows in this process; what a child of `find_killer` runs."""
    Classifier(**{**arguments, "suspects": None})(table)


def _dies(arguments: dict[str, Any], table: pa.Table) -> bool:
    """Whether the rows end a process; an error that is raised does not."""
    try:
        call = child.attempted_call(
            "vit_edge.scale.tables:answer_rows", arguments, table, timeout_s=_TRIAL_TIMEOUT_S
        )
    except VitEdgeError:
        return False
    return call.child.death is not None


def _name_of(table: pa.Table, name: str) -> str:
    """What a row's image is called: its path, if the table knows one."""
    row = table.slice(0, 1).to_pylist()[0]
    value = row[name]
    if isinstance(value, dict):
        value = value.get("path") or value.get("bytes")
    named = next((row[key] for key in ("path", "id", "key") if isinstance(row.get(key), str)), None)
    if named is not None or isinstance(value, str):
        return str(named or value)
    data: bytes = value or b""
    return f"the image of {len(data)} bytes with sha256 {hashlib.sha256(data).hexdigest()}"


def _image(value: Any) -> ImageLike | None:
    """The image of a cell."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and is_url(value):
        return cast("ImageLike", RemoteFile(value))
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
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _digest(values: Sequence[Any]) -> str:
    """Tell batches apart without hashing every byte of every image."""
    digest = hashlib.sha256()
    for value in values:
        image = _image(value)
        text = image if isinstance(image, bytes) else str(image).encode(errors="surrogatepass")
        digest.update(f"{len(text)}:".encode() + text[:512] + text[-512:])
    return digest.hexdigest()[:32]


def _alive(note: Path) -> bool:
    """Whether the process that wrote a note still runs: two may have the same rows."""
    try:
        os.kill(int(note.read_text()), 0)
    except (ValueError, OSError):
        return False
    return True


def _from_arguments(arguments: dict[str, Any]) -> Classifier:
    return Classifier(**arguments)
