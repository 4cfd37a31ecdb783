"""Which file a name means: paths stay on this machine, names of the hub are fetched once."""

import socket
import sys
import types
import urllib.request
from pathlib import Path

import pytest

import rocmforge_jax as rf
from rocmforge_jax import hub
from rocmforge_jax.cli import main
from rocmforge_jax.locate import DEMO, resolve

pytestmark = pytest.mark.core

SPLIT = [f"big/Model-Q6_K-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
FILES = [
    "README.md",
    "Model-BF16.gguf",
    "Model-Q4_K_M.gguf",
    "Model-Q5_K_S.gguf",
    "mmproj-Model-Q4_K_M.gguf",
    "imatrix-Q4_K_M.gguf",
    *SPLIT,
]


class FakeHub(types.ModuleType):
    """huggingface_hub, with one repository that this machine holds.

    Attributes:
        fetched: (repository, file) of every download, and the revision if one was asked for.
        error: What every call raises, or None.
        cached: Files that are in the cache already.
    """

    def __init__(self, folder: Path, files):
        super().__init__("huggingface_hub")
        self.folder, self.files, self.fetched, self.error, self.cached = folder, files, [], None, ()

    def list_repo_files(self, repository, revision=None):
        if self.error and not isinstance(self.error, EntryNotFoundError):
            raise self.error
        self.listed = revision
        return reversed(self.files)  # a hub promises no order

    def hf_hub_download(self, repository, filename, local_files_only=False, revision=None):
        if local_files_only and filename not in self.cached:
            raise LocalEntryNotFoundError()
        if self.error and filename not in self.cached:
            raise self.error
        self.fetched.append((repository, filename, *([] if revision is None else [revision])))
        path = self.folder / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DEMO.read_bytes())
        return str(path)

    def scan_cache_dir(self):
        files = [
            types.SimpleNamespace(file_path=self.folder / "snapshot" / name) for name in self.cached
        ]
        revision = types.SimpleNamespace(
            snapshot_path=self.folder / "snapshot", files=files, commit_hash="0ab1", refs={"v1"}
        )
        repo = types.SimpleNamespace(repo_id="owner/repo", repo_type="model", revisions=[revision])
        return types.SimpleNamespace(repos=[repo])


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The fake hub, while the current folder is an empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fake = FakeHub(tmp_path / "cache", FILES)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


@pytest.mark.parametrize(
    "name",
    [
        "./models/x.gguf",
        "../models/x.gguf",
        "~/models/x.gguf",
        "~nobody/models/x.gguf",
        "/models/deep/x.gguf",
        "models/x.gguf",
        "models/X.GGUF",
        "x.gguf",
        "x",
        "",
        ".",
        "models/../x.gguf",
        "owner/repo/../x.gguf",
        "owner/repo//x.gguf",
        "owner//x.gguf",
        "owner/repo/",
        "owner/repo/folder",
        "owner/repo/file.bin",
        r"models\deep\x.gguf",
        r"owner/repo/deep\x.gguf",
        "C:/models/x.gguf",
        r"C:\models\x.gguf",
        "owner/repo:",
        "owner/repo:Q4/x.gguf",
        "owner/-repo",
        "öwner/repo",
        "here/repo/x.gguf",
        "here/repo",
        "here/repo:Q4_0",
        Path("owner/repo/x.gguf"),
    ],
    ids=str,
)
def test_what_looks_like_a_path_is_never_looked_for_on_the_hub(fake, name):
    Path("here").mkdir()
    fake.error = AssertionError("the hub was asked")
    with pytest.raises((FileNotFoundError, rf.GGUFError), match="no file|is a folder"):
        rf.load(name)
    assert fake.fetched == []


def test_an_existing_path_comes_first(fake):
    for name in ("owner/repo/x.gguf", "owner/repo"):
        Path("owner/repo").mkdir(parents=True, exist_ok=True)
        Path("owner/repo/x.gguf").touch()
        assert resolve(name) == Path(name)
    assert fake.fetched == []


def test_home_is_expanded_unless_there_is_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x.gguf").touch()
    assert resolve("~/x.gguf") == resolve(Path("~/x.gguf")) == tmp_path / "home" / "x.gguf"
    with pytest.raises(FileNotFoundError, match="no file .*/home/y.gguf; the folder has x.gguf"):
        rf.load("~/y.gguf")
    Path("~").mkdir()
    Path("~/x.gguf").touch()
    assert resolve("~/x.gguf") == Path("~/x.gguf")


def test_a_folder_does_not_hide_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert resolve("demo") == DEMO
    Path("demo").rmdir()
    Path("demo").touch()
    assert resolve("demo") == Path("demo")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("owner/repo", "Model-Q4_K_M.gguf"),
        ("owner/repo:Q5_K_S", "Model-Q5_K_S.gguf"),
        ("owner/repo:q5_k_s", "Model-Q5_K_S.gguf"),
        ("owner/repo:bf16", "Model-BF16.gguf"),
        ("owner/repo/Model-BF16.gguf", "Model-BF16.gguf"),
        ("owner/repo/deep/er/x.gguf", "deep/er/x.gguf"),
        ("owner/repo/X.GGUF", "X.GGUF"),
    ],
)
def test_names_of_the_hub(fake, name, file):
    assert resolve(name) == fake.folder / file
    assert fake.fetched == [("owner/repo", file)]


@pytest.mark.parametrize(
    ("name", "file", "revision"),
    [
        ("hf://owner/repo", "Model-Q4_K_M.gguf", None),
        ("hf://owner/repo:Q5_K_S", "Model-Q5_K_S.gguf", None),
        ("hf://owner/repo/deep/x.gguf", "deep/x.gguf", None),
        ("HF://owner/repo/x.gguf", "x.gguf", None),
        ("hf://models/owner/repo/x.gguf", "x.gguf", None),
        ("hf://owner/repo@v1/x.gguf", "x.gguf", "v1"),
        ("owner/repo@0ab1", "Model-Q4_K_M.gguf", "0ab1"),
        ("owner/repo@v1:q5_k_s", "Model-Q5_K_S.gguf", "v1"),
        ("owner/repo@v1.2/deep/x.gguf", "deep/x.gguf", "v1.2"),
        ("hf.co/owner/repo", "Model-Q4_K_M.gguf", None),
        ("hf.co/owner/repo:BF16", "Model-BF16.gguf", None),
        ("huggingface.co/owner/repo", "Model-Q4_K_M.gguf", None),
        ("https://huggingface.co/owner/repo", "Model-Q4_K_M.gguf", None),
        ("https://www.huggingface.co/owner/repo/", "Model-Q4_K_M.gguf", None),
        ("https://huggingface.co/owner/repo/resolve/main/x.gguf", "x.gguf", "main"),
        ("https://huggingface.co/owner/repo/blob/v1/deep/x.gguf", "deep/x.gguf", "v1"),
        ("http://hf.co/owner/repo/resolve/main/x%20y.gguf?download=true", "x y.gguf", "main"),
    ],
)
def test_addresses_and_revisions(fake, name, file, revision):
    assert resolve(name) == fake.folder / file
    asked = ("owner/repo", file) if revision is None else ("owner/repo", file, revision)
    assert fake.fetched == [asked]
    assert getattr(fake, "listed", revision) == revision


@pytest.mark.parametrize("name", ["owner/repo", "owner/repo@v1", "hf://owner/repo:Q4_K_M"])
def test_a_revision_is_an_argument_too(fake, name):
    resolve(name, "v1")
    assert fake.fetched == [("owner/repo", "Model-Q4_K_M.gguf", "v1")]
    lm = rf.load(name, revision="v1", progress=False, layers=1)
    assert len(lm.model.blk) == 1 and fake.fetched[1:] == fake.fetched[:1]
    rf.load_abstract(name, revision="v1")
    assert fake.fetched[2:] == fake.fetched[:1]


def test_revisions_that_cannot_be(fake):
    with pytest.raises(ValueError, match="v2.*revision is v1"):
        resolve("owner/repo@v2", "v1")
    Path("x.gguf").touch()
    with pytest.raises(ValueError, match="'v1'.*x.gguf"):
        rf.load("x.gguf", revision="v1")
    with pytest.raises(ValueError, match="'v1'.*demo"):
        rf.load("demo", revision="v1")
    with pytest.raises(TypeError, match="revision.*int"):
        rf.load("owner/repo", revision=1)
    assert fake.fetched == []


def test_offline_the_cache_of_a_revision_is_used(fake):
    fake.error, fake.cached = ConnectionError(), ("a-Q8_0.gguf",)
    assert resolve("owner/repo", "v1") == resolve("owner/repo@0ab1")
    with pytest.raises(FileNotFoundError, match="owner/repo .*cannot be reached"):
        resolve("owner/repo", "v3")


def test_a_file_that_a_repository_lacks_lists_those_that_it_has(fake):
    fake.error = EntryNotFoundError("404")
    with pytest.raises(
        FileNotFoundError, match="owner/repo/x.gguf .*no such file.*Model-BF16.gguf, "
    ):
        resolve("owner/repo/x.gguf")


def test_a_split_model_is_fetched_whole(fake):
    assert resolve("owner/repo:Q6_K") == fake.folder / SPLIT[0]
    assert sorted(file for _, file in fake.fetched) == SPLIT
    fake.fetched.clear()
    assert resolve(f"owner/repo/{SPLIT[1]}") == fake.folder / SPLIT[1]
    assert sorted(file for _, file in fake.fetched) == SPLIT


@pytest.mark.parametrize(
    ("files", "quantisation", "chosen"),
    [
        (["a-Q8_0.gguf", "b-Q4_K_M.gguf"], None, "b-Q4_K_M.gguf"),
        (["a-IQ2_M.gguf", "b-Q8_0.gguf"], None, "b-Q8_0.gguf"),
        (["a-IQ2_M.gguf", "b-F16.gguf"], None, "a-IQ2_M.gguf"),
        (["mmproj-a.gguf", "a.gguf", "a.txt"], None, "a.gguf"),
        (["a-00002-of-00002.gguf", "b.gguf"], None, "b.gguf"),
        (["a-Q4_K.gguf", "a-Q4_K_M.gguf"], "Q4_K", "a-Q4_K.gguf"),
        (["a-Q4_K_M.gguf"], "Q4_K", None),
        (["Q8_0/a.gguf", "x/a-q8_0-00001-of-00002.gguf"], "Q8_0", "x/a-q8_0-00001-of-00002.gguf"),
        (["a.safetensors", "mmproj-F16.gguf"], None, None),
        (["aXQ8_0.gguf"], ".Q8_0", None),
    ],
)
def test_which_file_is_chosen(files, quantisation, chosen):
    """As common/download.cpp of llama.cpp chooses it."""
    assert hub.choose(files, quantisation) == chosen


def test_a_quantisation_that_a_repository_lacks_lists_those_that_it_has(fake):
    with pytest.raises(FileNotFoundError, match="owner/repo has no .*IQ1_S.*Model-BF16.gguf, "):
        resolve("owner/repo:IQ1_S")
    fake.files = ["README.md"]
    with pytest.raises(FileNotFoundError, match="has no GGUF file .*no GGUF file at all"):
        resolve("owner/repo")


class RepositoryNotFoundError(OSError):
    pass


class EntryNotFoundError(OSError):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class LocalEntryNotFoundError(FileNotFoundError):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError("404\nlong\ntext"), "no such repository, or it is private"),
        (GatedRepoError("403"), "its owner has to admit you"),
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (ConnectionError("no route"), "the hub cannot be reached"),
        (ValueError("a\nstrange " + "x" * 5000), r"ValueError: a strange x+\.\.\. \(5,010 char"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", ["owner/repo", "owner/repo/x.gguf"])
def test_errors_of_the_hub_are_one_line(fake, capsys, name, error, message):
    fake.error = error
    with pytest.raises(FileNotFoundError, match=f"cannot fetch {name} .*{message}") as caught:
        resolve(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert main(["inspect", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_offline_the_cache_is_used(fake):
    fake.error, fake.cached = ConnectionError(), ("a-Q8_0.gguf", "b-F16.gguf")
    assert resolve("owner/repo") == fake.folder / "a-Q8_0.gguf"
    assert resolve("owner/repo/b-F16.gguf") == fake.folder / "b-F16.gguf"


@pytest.mark.parametrize("name", ["owner/repo", "owner/repo/b-F16.gguf"])
def test_a_hub_that_cannot_be_connected_to_is_not_asked(fake, monkeypatch, name):
    """The hub's library would retry for 24 s, with a line each time."""
    with socket.socket() as bound:  # nothing listens at its port
        bound.bind(("127.0.0.1", 0))
        constants = types.SimpleNamespace(HF_HUB_OFFLINE=False)
        constants.ENDPOINT = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setattr(fake, "constants", constants, raising=False)
        monkeypatch.setattr(urllib.request, "getproxies", dict)
        monkeypatch.setattr(fake, "list_repo_files", None)  # must not be called
        with pytest.raises(FileNotFoundError, match=f"{name} .*the hub cannot be reached"):
            resolve(name)
        fake.cached = ("b-F16.gguf",)
        assert resolve(name) == fake.folder / "b-F16.gguf"
        bound.listen()
        fake.cached, fake.list_repo_files = (), lambda repository: ["b-F16.gguf"]
        assert resolve(name) == fake.folder / "b-F16.gguf"


@pytest.mark.parametrize("name", ["owner/repo", "owner/repo:Q8_0", "owner/repo/x.gguf"])
def test_without_huggingface_hub(fake, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'rocmforge-jax\[hub\]'"):
        resolve(name)


@pytest.mark.parametrize(
    "name",
    [
        "https://huggingface.co/owner/repo/resolve/main/x.bin",
        "https://huggingface.co/owner/repo/tree/main",
        "https://huggingface.co/owner",
        "https://example.org/owner/repo/resolve/main/x.gguf",
        "hf.co/owner",
        "hf://owner/repo/../x.gguf",
        "hf://owner",
        "owner/repo/",
        "owner/repo@",
        "owner/repo@main/",
        "owner/repo:",
    ],
)
def test_an_address_is_told_how_models_are_named(fake, name):
    with pytest.raises(FileNotFoundError, match=f"no file {name}; .*owner/repository/file.gguf"):
        resolve(name)


@pytest.mark.parametrize("name", ["Demo", "DEMO", "demo.gguf"])
def test_the_demo_is_named(fake, name):
    with pytest.raises(FileNotFoundError, match=f"no file {name}; did you mean demo"):
        resolve(name)


@pytest.mark.parametrize("target", ["missing.gguf", "link.gguf"])
@pytest.mark.parametrize("opened", [rf.load, rf.open_gguf])
def test_a_broken_link_is_named(fake, opened, target):
    Path("link.gguf").symlink_to(target)
    with pytest.raises(FileNotFoundError, match=f"link.gguf is a broken link to {target}"):
        opened("link.gguf")


@pytest.mark.parametrize("opened", [rf.load, rf.open_gguf])
def test_an_empty_path_is_named(opened):
    with pytest.raises(FileNotFoundError, match="the path is empty"):
        opened("")


def test_a_folder_lists_five_of_its_files(fake):
    for number in range(12):
        Path(f"model-{number:02}.gguf").touch()
    with pytest.raises(rf.GGUFError, match=r"it: model-00.gguf, .*, model-04.gguf, and 7 more$"):
        rf.load(".")


@pytest.mark.parametrize("name", [7, None, 2.5])
def test_what_is_no_name(name):
    with pytest.raises(TypeError, match=type(name).__name__):
        resolve(name)
