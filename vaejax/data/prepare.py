"""Prepare a TFDS data set for its first use: `python -m vaejax.data.prepare NAME`.

Apart from `vaejax.data` because it needs TensorFlow, which reading does not.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

from vaejax.data._files import PathLike
from vaejax.data.tfds import check_name, folder
from vaejax.errors import missing, wrong

__all__ = ["prepare"]


def prepare(
    name: str, data_dir: PathLike | None = None, manual_dir: PathLike | None = None
) -> Path:
    """Download a TFDS set and write it in the array_record format, which `load` reads.

    Args:
      name: `"mnist"`, `"tfds:cifar10"`, ...
      data_dir: where to write; by default as in `load`.
      manual_dir: a folder of files already downloaded, under their original names. They are used,
        with checksums verified, instead of the network.
    Returns:
      The folder of the prepared set.
    Raises:
      ValueError: for an unknown name.
      FileNotFoundError: for files missing in manual_dir.
      ImportError: without TensorFlow and importlib_resources (the extra `prepare`),
        which reading does not need.
    """
    name = name.removeprefix("tfds:")
    check_name("prepare", name)
    needed = ("tensorflow", "importlib_resources")
    absent = [package for package in needed if not importlib.util.find_spec(package)]
    if absent:  # reading needs neither
        raise missing("prepare", " ".join(absent), "prepare")
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder(data_dir), file_format="array_record")
    if manual_dir is not None and not builder.builder_configs:
        wanted = {info.filename for info in (builder.url_infos or {}).values()}
        absent = sorted(f for f in wanted if not (Path(manual_dir).expanduser() / f).is_file())
        if absent:
            fix = "put these files there, or leave manual_dir out to download them"
            raise wrong("prepare: manual_dir", manual_dir, absent, fix, FileNotFoundError)
    # TFDS finds extracted files again by name alone, and those of mnist and fashion_mnist have the
    # same names: without a fresh folder one set is silently written as the other.
    with tempfile.TemporaryDirectory() as fresh:
        config = tfds.download.DownloadConfig(
            manual_dir=manual_dir, extract_dir=fresh, try_download_gcs=False
        )
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_path)


def _main() -> None:
    parser = argparse.ArgumentParser(
        "python -m vaejax.data.prepare", description="Prepare a TFDS set."
    )
    parser.add_argument("name", help="for instance mnist, fashion_mnist or cifar10")
    parser.add_argument("--data_dir", help="where to write it; default: $TFDS_DATA_DIR")
    parser.add_argument("--from", dest="manual_dir", help="folder of files already downloaded")
    given = parser.parse_args()
    try:
        print(prepare(given.name, given.data_dir, given.manual_dir))
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    _main()
