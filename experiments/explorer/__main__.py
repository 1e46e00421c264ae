"""A trained model as a page: its decoder under the mouse, its codes as points.

    python -m experiments.explorer RUN [--out FILE.html]
    python -m experiments.explorer RUN --serve

The first writes one file that a browser opens from the disk, without a network. The second is for
a decoder that the page cannot run itself: a page on this machine alone, for which Python decodes.
"""

import argparse
import sys
from pathlib import Path

from experiments.common.options import for_the_user
from experiments.explorer.opened import opened
from experiments.explorer.page import page, program_of
from experiments.explorer.server import server
from vaejax import compiling


def main(words: list[str] | None = None) -> Path | None:
    """Write the page, and return its path; or serve it."""
    about = argparse.ArgumentParser(
        "python -m experiments.explorer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    about.add_argument("--out", type=Path, help="the file; by default explorer.html in RUN")
    about.add_argument("--part", default="", help="which of several models that the run trained")
    about.add_argument("--member", type=int, help="which run of a sweep, from 0")
    about.add_argument(
        "--experiment", default="", help="whose run it is, for one of an old version"
    )
    about.add_argument("--serve", action="store_true", help="a local page; Python decodes")
    about.add_argument("--port", type=int, default=8000, help="of that page")
    said = about.parse_args(words)
    run = opened(said.run, experiment=said.experiment, part=said.part, member=said.member)
    if said.serve:
        with server(run, page(run, None), said.port) as local:
            print(f"http://127.0.0.1:{local.server_port}/ (end with Ctrl-C)", flush=True)
            try:
                local.serve_forever()
            except KeyboardInterrupt:
                print()
        return None
    out = said.out or said.run / "explorer.html"
    text = page(run, program_of(run))
    out.write_text(text, encoding="utf-8")
    print(f"{out.resolve()} ({len(text) / 1e6:.1f} MB): open it in a browser")
    return out


if __name__ == "__main__":
    compiling.keep_on_disk()
    try:
        main()
    except Exception as error:
        if not for_the_user(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
