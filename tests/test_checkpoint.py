"""Checkpoints: what is loaded is what was saved, bit for bit, or a sentence says why not."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import pickle
import re
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from treadle import checkpoint
from treadle.checkpoint import CheckpointError, load, read_metadata, save

pytestmark = pytest.mark.least_optimised


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Network:
    vector: Any
    layers: Any


def example() -> dict[str, Any]:
    return {
        "algorithm": Network(jnp.arange(3.0), [Pair(jnp.ones((2, 2), jnp.bfloat16), None)]),
        "key": jax.random.key(7),
        "step": jnp.int32(5),
        "done": np.array([True, False]),
    }


def as_bits(tree: Any) -> tuple[Any, list[tuple[str, tuple[int, ...], bytes]]]:
    """Structure, and of each leaf dtype, shape and bytes: NaNs count as equal only with the same payload."""

    def bits(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
        return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()

    return jax.tree.structure(tree), [bits(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


def test_a_tree_comes_back_with_its_metadata_and_nothing_is_left_beside_it(path):
    metadata = {"algorithm": "dqn", "gamma": 0.99, "bound": float("inf"), "nested": {"list": [1, None, "é\ud800"]}}
    save(path, example(), metadata)
    tree, read = load(path, jax.eval_shape(example))
    assert as_bits(tree) == as_bits(example())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))
    assert read == metadata == read_metadata(path)
    assert os.listdir(path.parent) == [path.name]


def test_what_is_not_wanted_is_checked_but_not_kept(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PIECE", 1000)
    save(path, {"network": jnp.arange(3.0), "memory": jnp.ones((50, 50))}, {})
    like = {"network": jax.ShapeDtypeStruct((3,), jnp.float32), "memory": jax.ShapeDtypeStruct((50, 50), jnp.float32)}
    wanted = {"network": True, "memory": False}
    loaded, _ = load(path, like, wanted)
    assert loaded["network"].tolist() == [0.0, 1.0, 2.0] and loaded["memory"] is like["memory"]
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        load(path, like, wanted)


def test_other_programs_read_the_file_and_find_leaves_under_readable_names(path):
    save(path, example(), {})
    tensors = safetensors.numpy.load_file(path)
    assert set(tensors) == {"algorithm.vector", "algorithm.layers[0].left", "key", "step", "done"}
    np.testing.assert_array_equal(tensors["algorithm.vector"], [0.0, 1.0, 2.0])
    assert tensors["algorithm.layers[0].left"].dtype == ml_dtypes.bfloat16
    assert tensors["step"].shape == ()
    np.testing.assert_array_equal(tensors["key"], jax.random.key_data(jax.random.key(7)))


def test_keys_that_look_alike_stay_apart(path):
    tree = {
        "a.b": np.int32(1),
        "a": {"b": np.int32(2)},
        "['c']": np.int32(3),
        "c": np.int32(4),
        "__metadata__": np.int32(5),
    }
    save(path, tree, {})
    assert as_bits(load(path, tree)[0]) == as_bits(tree)


def test_a_tree_may_be_one_leaf_or_none(path):
    for tree in (jnp.float32(2.5), (), {"nothing": None}):
        save(path, tree, {})
        assert as_bits(load(path, tree)[0]) == as_bits(tree)


def test_keys_of_every_implementation_continue_their_stream(path):
    keys = {impl: jax.random.split(jax.random.key(3, impl=impl), 2) for impl in ("threefry2x32", "rbg", "unsafe_rbg")}
    save(path, keys, {})
    restored, _ = load(path, keys)
    assert as_bits(restored) == as_bits(keys)
    np.testing.assert_array_equal(jax.random.normal(restored["rbg"][1]), jax.random.normal(keys["rbg"][1]))


def test_wide_leaves_and_foreign_layouts_of_numpy_keep_their_values(path):
    tree = {
        "count": np.int64(2**40 + 1),
        "mean": np.float64(0.1),
        "big_endian": np.arange(3, dtype=">f4"),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "strided": np.arange(8, dtype=np.uint8)[::3],
    }
    save(path, tree, {})
    restored, _ = load(path, tree)
    for name, value in tree.items():
        np.testing.assert_array_equal(np.asarray(restored[name]), value)
    assert restored["count"].dtype == np.int64
    assert restored["mean"].dtype == np.float64


dtypes = st.sampled_from(
    [np.bool_, np.uint8, np.int8, np.int16, np.uint32, np.int32, np.float16, np.float32, ml_dtypes.bfloat16]
)


@st.composite
def arrays(draw) -> np.ndarray:
    """Any bits at all, so every NaN, infinity and denormal is among them; some arrays have no element."""
    dtype, shape = np.dtype(draw(dtypes)), draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    return (raw & 1 if dtype == np.bool_ else raw).view(dtype).reshape(shape)


trees = st.recursive(
    arrays() | st.none(),
    lambda inner: (
        st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.dictionaries(st.integers(-9, 99), inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Pair, inner, inner)
        | st.builds(Network, inner, inner)
    ),
    max_leaves=8,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(tree=trees, metadata=st.dictionaries(st.text(max_size=4), json_values, max_size=3))
def test_any_tree_survives_bit_for_bit(tree, metadata, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save(path, tree, metadata)
    restored, read = load(path, tree)
    assert as_bits(restored) == as_bits(tree)
    assert read == metadata
    safetensors.numpy.load_file(path)


def small() -> dict[str, Any]:
    return {"w": np.arange(3, dtype=np.float32), "key": jax.random.key(1), "empty": np.zeros((0, 2), bool)}


def test_a_file_cut_short_anywhere_is_refused(path):
    save(path, small(), {"é": 1})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for read in (lambda: load(path, small()), lambda: read_metadata(path)):
            with pytest.raises(CheckpointError, match=re.escape(str(path))):
                read()
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load(path, small())


def test_a_changed_byte_anywhere_is_refused(path):
    """Every single bit, and a change of a space to a tab, which leaves the header's meaning as it was."""
    like = {"w": np.arange(3, dtype=np.float32), "empty": np.zeros((0, 2), bool)}
    save(path, like, {"é": 1})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for change in [1 << bit for bit in range(8)] + [ord(" ") ^ ord("\t")]:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            with pytest.raises(CheckpointError):
                load(path, like)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def zipped() -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("data.pkl", b"")
        return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (zipped(), "zip archive"),
        (np.random.default_rng(0).bytes(4096), "not a safetensors file"),
        (b"\xff" * 8 + b"{" * 5000, "not a safetensors file"),
        (safetensors.numpy.save({"w": np.ones(2, np.float32)}), "another program"),
        (safetensors.numpy.save({"w": np.ones(2, np.float32)}, {"format": "pt"}), "another program"),
    ],
    ids=["empty", "zip", "noise", "huge header", "safetensors", "safetensors with metadata"],
)
def test_a_foreign_file_is_told_from_a_damaged_one(path, content, said):
    path.write_bytes(content)
    for read in (lambda: load(path, small()), lambda: read_metadata(path)):
        with pytest.raises(CheckpointError, match=said):
            read()


def test_a_pickle_is_refused_and_never_run(path):
    trap = path.with_name("sprung")
    path.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(CheckpointError, match="pickle"):
        load(path, small())
    assert not trap.exists()


def test_a_missing_file_and_a_folder_are_told_in_a_sentence(path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(path, small())
    with pytest.raises(CheckpointError, match="could not be read"):
        read_metadata(path.parent)


@pytest.mark.parametrize(
    ("other", "advice"),
    [(checkpoint.FORMAT + 1, "update Treadle"), (checkpoint.FORMAT - 1, "the version of Treadle that wrote it")],
)
def test_another_format_is_named_with_what_to_do(path, monkeypatch, other, advice):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", other)
        save(path, small(), {})
    with pytest.raises(CheckpointError, match=f"format {other}.*reads {checkpoint.FORMAT}.*{advice}"):
        load(path, small())


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ({"a": np.zeros(3, np.int32), "b": np.zeros((2, 4), np.float32)}, r"float32\[2, 3\] for b.*float32\[2, 4\]"),
        ({"a": np.zeros(3, np.int16), "b": np.zeros((2, 4), np.float32)}, r"int32\[3\] for a.*int16\[3\]"),
        ({"a": np.zeros(3, np.int32), "c": np.zeros(1, np.float32)}, r"has no c.*float32\[1\]"),
        ({"a": np.zeros(3, np.int32)}, r"has b, float32\[2, 3\], which was not expected"),
        ({"a": jax.random.key(0), "b": np.zeros((2, 3), np.float32)}, r"int32\[3\] for a.*threefry2x32 key\[\]"),
    ],
    ids=["shape", "dtype", "missing", "unexpected", "key"],
)
def test_the_first_leaf_that_does_not_fit_is_named(path, like, said):
    save(path, {"a": np.zeros(3, np.int32), "b": np.zeros((2, 3), np.float32)}, {})
    with pytest.raises(CheckpointError, match=said) as caught:
        load(path, like)
    assert "settings differ" in str(caught.value)


def test_key_data_is_not_taken_for_a_key(path):
    save(path, {"k": jax.random.key_data(jax.random.key(0))}, {})
    with pytest.raises(CheckpointError, match=r"uint32\[2\] for k"):
        load(path, {"k": jax.random.key(0)})


@pytest.mark.parametrize(
    ("tree", "metadata", "said"),
    [
        ({"name": "dqn"}, {}, "the leaf name is str"),
        ({"z": np.zeros(2, np.complex64)}, {}, "an array of complex64"),
        ({}, {"path": Path("x")}, "JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(path, tree, metadata, said):
    save(path, small(), {})
    with pytest.raises(CheckpointError, match=said):
        save(path, tree, metadata)
    load(path, small())
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_former_checkpoint(path, monkeypatch, step):
    save(path, small(), {"step": 1})

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, step, fail)
        with pytest.raises(
            CheckpointError, match=r"No space left.*needs 0\.0 MB.*free.*former checkpoint is untouched"
        ):
            save(path, small(), {"step": 2})
    assert load(path, small())[1] == {"step": 1}
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupt_while_saving_leaves_nothing_behind(path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.zlib, "crc32", interrupt)
    monkeypatch.setattr(checkpoint, "_encode", lambda *_: b"")
    with pytest.raises(KeyboardInterrupt):
        save(path, small(), {})
    assert os.listdir(path.parent) == []


def test_a_folder_that_cannot_be_synced_is_not_called_a_failed_save(path, monkeypatch):
    real, calls = os.fsync, []

    def fail_on_the_folder(fd):
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(checkpoint.os, "fsync", fail_on_the_folder)
    with pytest.raises(CheckpointError, match="was written, but"):
        save(path, small(), {})
    assert as_bits(load(path, small())[0]) == as_bits(small())


def test_saving_into_a_missing_folder_says_so(path):
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save(path.parent / "missing" / "state.safetensors", small(), {})


def test_what_a_killed_save_left_is_removed_and_nothing_else(path):
    keep = [f".{path.name}.bak.0123abcd.partial", f"{path.name}.0123abcd.partial", f".{path.name}.partial"]
    for name in [*keep, f".{path.name}.0123abcd.partial"]:
        path.with_name(name).write_bytes(b"half")
    save(path, small(), {})
    assert sorted(os.listdir(path.parent)) == sorted([*keep, path.name])


def run(script: str, *arguments: object) -> str:
    """The output of a script in a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_write_stopped_by_the_system_keeps_the_former_checkpoint(path):
    pytest.importorskip("resource")
    save(path, {"w": np.arange(10, dtype=np.float32)}, {"step": 1})
    said = run(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from treadle.checkpoint import CheckpointError, save
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            save(Path(sys.argv[1]), {"w": np.zeros(1_000_000, np.float32)}, {"step": 2})
        except CheckpointError as error:
            print(error)
        """,
        path,
    )
    assert "File too large" in said
    assert "needs 4.0 MB" in said
    assert "untouched" in said
    assert load(path, {"w": np.zeros(10, np.float32)})[1] == {"step": 1}
    assert os.listdir(path.parent) == [path.name]


def test_kill_9_at_any_moment_leaves_a_checkpoint_that_loads(path):
    """Children save without pause and are killed; what lies at `path` after each death is kept for inspection."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    rounds = 25
    run(
        """
        import os, random, shutil, signal, sys, time
        from pathlib import Path
        import numpy as np
        from treadle.checkpoint import save
        path, rounds = Path(sys.argv[1]), int(sys.argv[2])
        def write(step):
            save(path, {"a": np.full(100_000, step, np.int32), "b": np.full(50_000, step, np.int16)}, {"step": step})
        write(0)
        for round in range(rounds):
            child = os.fork()
            if child == 0:
                for step in range(1, 10_000):
                    write(step)
            time.sleep(random.uniform(0.001, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            shutil.copy(path, path.with_name(f"after-{round}"))
        """,
        path,
        rounds,
    )
    like = {"a": np.zeros(100_000, np.int32), "b": np.zeros(50_000, np.int16)}
    seen = set()
    for round in range(rounds):
        tree, metadata = load(path.with_name(f"after-{round}"), like)
        assert (np.asarray(tree["a"]) == metadata["step"]).all()
        assert (np.asarray(tree["b"]) == metadata["step"]).all()
        seen.add(metadata["step"])
    assert seen != {0}
    save(path, like, {})
    assert not [name for name in os.listdir(path.parent) if name.endswith(".partial")]


def test_leaves_sharded_over_devices_are_saved_whole(path):
    run(
        """
        import sys
        from pathlib import Path
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from treadle.checkpoint import save
        jax.config.update("jax_num_cpu_devices", 4)
        mesh = jax.make_mesh((2, 2), ("x", "y"))
        put = lambda array, *spec: jax.device_put(array, NamedSharding(mesh, P(*spec)))
        table = jnp.arange(24.0).reshape(4, 6)
        save(Path(sys.argv[1]), {
            "tiles": put(table, "x", "y"),
            "rows": put(table, "x"),
            "copies": put(table),
            "scalar": put(jnp.int32(3)),
            "keys": put(jax.random.split(jax.random.key(0), 4), "x"),
        }, {})
        """,
        path,
    )
    table = jnp.arange(24.0).reshape(4, 6)
    expected = {
        "tiles": table,
        "rows": table,
        "copies": table,
        "scalar": jnp.int32(3),
        "keys": jax.random.split(jax.random.key(0), 4),
    }
    assert as_bits(load(path, expected)[0]) == as_bits(expected)


def test_a_loaded_tree_may_be_donated(path):
    """Arrays that borrow NumPy's memory could be read after they were given away."""
    tree = {"w": jnp.arange(1000.0)}
    save(path, tree, {})
    restored, _ = load(path, tree)
    changed = jax.jit(lambda t: {"w": t["w"] + 1}, donate_argnums=0)(restored)
    np.testing.assert_array_equal(changed["w"], np.arange(1000.0) + 1)
    assert restored["w"].is_deleted()
    assert as_bits(load(path, tree)[0]) == as_bits(tree)


@pytest.mark.parametrize("shape", [(3, 50, 70), (7, 999), (1, 1, 5_000)])
def test_a_large_array_is_read_piece_by_piece(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGE", 1_000)
    monkeypatch.setattr(checkpoint, "_PIECE", 1_024)
    rng = np.random.default_rng(0)
    tree = {"bytes": rng.integers(0, 256, shape, np.uint8), "words": rng.normal(size=shape).astype(np.float32)}
    checkpoint.save(tmp_path / "x.safetensors", tree, {})
    loaded, _ = checkpoint.load(tmp_path / "x.safetensors", tree)
    for name, array in tree.items():
        assert isinstance(loaded[name], jax.Array)
        np.testing.assert_array_equal(loaded[name], array)


def test_a_large_array_is_never_there_twice(tmp_path):
    like = {"x": jax.ShapeDtypeStruct((1, 20_000, 7_056), jnp.uint8)}
    checkpoint.save(tmp_path / "x.safetensors", {"x": np.zeros(like["x"].shape, np.uint8)}, {})
    tracemalloc.start()
    loaded, _ = checkpoint.load(tmp_path / "x.safetensors", like)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded["x"].nbytes > checkpoint.LARGE and most < 0.1 * loaded["x"].nbytes, "what NumPy held meanwhile"
