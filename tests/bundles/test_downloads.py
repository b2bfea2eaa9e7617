# SPDX-License-Identifier: Apache-2.0
"""MONAI's own download, unchanged, from a plain address, a release page and a model hub, all on the loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import monai.bundle
import pytest

from common.checks import InputError
from scripts import download, package

from .conftest import ROOT, environment
from .stand_ins import Server, make_certificate, serving

NAME = "instance_any"
REPOSITORY = "OWNER/REPO/TAG"
PAGE = "github.com/OWNER/REPO/releases/download/TAG"
# MONAI's download compares no checksum, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of the hosts, with a zoo of one bundle on a release page, on a plain server and on a hub."""
    root = tmp_path_factory.mktemp("hosts")
    (root / "bundles").mkdir()
    (root / "bundles" / NAME).symlink_to(ROOT / "bundles" / NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "BUNDLES", root / "bundles")
        (archive,) = package.pack_all(root / PAGE, f"https://{PAGE}")
    tagged = root / "raw.githubusercontent.com" / "OWNER" / "REPO" / "TAG"
    shutil.move(root / PAGE / "models", tagged / "models")
    shutil.copy(tagged / "models" / "model_info.json", root / PAGE)
    (root / "127.0.0.1").mkdir()
    shutil.copy(archive, root / "127.0.0.1")
    package.hub_folder(archive, root)
    yield root


@pytest.fixture
def server(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The stand-in, which every client of this process and of those that it starts is told of."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, which makes the certificate of the stand-in")
    certificate = make_certificate(tmp_path)
    with serving(Server(zoo, certificate)) as stand_in:
        for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", stand_in.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub_cache"))
        # Made once a process, with the proxies of then.
        monkeypatch.setattr(urllib.request, "_opener", None)
        yield stand_in


def version() -> str:
    metadata = json.loads((ROOT / "bundles" / NAME / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return str(metadata["version"])


def is_whole(folder: Path) -> bool:
    """Whether a bundle was unpacked with its configurations and with one package beside them."""
    return (folder / "configs" / "inference.json").is_file() and len(list(folder.glob("registration_common_*"))) == 1


def test_from_a_plain_address(server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/{NAME}_v{version()}.zip"
    monai.bundle.download(NAME, url=url, bundle_dir=tmp_path / "here", progress=False)
    assert is_whole(tmp_path / "here" / NAME)


def test_from_a_release_page(server: Server, tmp_path: Path) -> None:
    monai.bundle.download(
        NAME, source="github", repo=REPOSITORY, version=version(), bundle_dir=tmp_path / "here", progress=False
    )
    assert is_whole(tmp_path / "here" / NAME) and server.asked == [f"{PAGE}/{NAME}_v{version()}.zip"]


def test_the_newest_of_a_release_page(server: Server, tmp_path: Path) -> None:
    monai.bundle.download(NAME, source="github", repo=REPOSITORY, bundle_dir=tmp_path / "here", progress=False)
    assert is_whole(tmp_path / "here" / NAME)
    assert server.asked[0] == "raw.githubusercontent.com/OWNER/REPO/TAG/models/model_info.json"
    assert monai.bundle.get_all_bundles_list(repo="OWNER/REPO", tag="TAG") == [(NAME, version())]


@pytest.mark.parametrize("wanted", [[], ["--version", "0.1.0"]])
def test_from_a_model_hub(wanted: list[str], server: Server, tmp_path: Path) -> None:
    where = ["--source", "huggingface_hub", "--repo", f"OWNER/{NAME}", "--bundle_dir", str(tmp_path / "here")]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "download", NAME, *where, *wanted]
    # In a process of its own, as the client reads its settings when it is imported.
    ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert is_whole(tmp_path / "here" / NAME)
    assert (tmp_path / "here" / NAME / "README.md").read_text().startswith("---\nlibrary_name: monai\n")


def test_with_checksum_from_a_release_page(server: Server, tmp_path: Path) -> None:
    # The page has no folders, so that the index is looked for twice.
    assert is_whole(download.download(NAME, f"https://{PAGE}", bundle_dir=tmp_path / "here"))
    files = [f"{PAGE}/models/model_info.json", f"{PAGE}/model_info.json", f"{PAGE}/{NAME}_v{version()}.zip"]
    assert server.asked == files
    with pytest.raises(InputError, match="https://github.com/OWNER/REPO/absent/model_info.json answers 404 Not Found"):
        download.download(NAME, "https://github.com/OWNER/REPO/absent", bundle_dir=tmp_path / "there")


def test_nobody_answers(tmp_path: Path) -> None:
    with Server(tmp_path) as closed:
        address = closed.url
    with pytest.raises(InputError, match=rf"Cannot read {address}/models/model_info.json: .*refused"):
        download.download(NAME, address, bundle_dir=tmp_path)


def test_monai_unpacks_a_cut_zip_without_a_word_of_help(server: Server, zoo: Path, tmp_path: Path) -> None:
    content = (zoo / "127.0.0.1" / f"{NAME}_v{version()}.zip").read_bytes()
    (zoo / "127.0.0.1" / "cut.zip").write_bytes(content[:-1000])
    for _ in range(2):
        # The second time from the file that the first one kept: docs/zoo.md says what to do.
        with pytest.raises(zipfile.BadZipFile):
            monai.bundle.download(NAME, url=f"{server.url}/cut.zip", bundle_dir=tmp_path / "here", progress=False)
    assert [path.name for path in (tmp_path / "here").iterdir()] == [f"{NAME}.zip"] and len(server.asked) == 1
