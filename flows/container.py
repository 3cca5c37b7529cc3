"""`python -m flows.container COMMAND...`: the code of a new image into the git repository of a container, then COMMAND.

The image is a git repository of one commit. Its .git lies in a volume, which keeps experiments and outlasts the image.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flows.git import git, head_commit
from minillm.errors import UserError

BUNDLE_KEY = "minillm.bundle"  # in git's settings: where the image has its commit outside the volume


def take_up_code(root: Path) -> str:
    """Check out the commit of the image where the history is that of another one; return what was done.

    Files stay as they are, those of the image. The commit that was checked out gets a tag, which keeps its experiments
    in sight. A repository that no image made is left alone, and so are commits upon the image's own.
    """
    bundle = git(root, "config", "--default", "", "--get", BUNDLE_KEY)
    if not bundle:
        return ""
    git(root, "fetch", "--quiet", bundle, "HEAD")
    commit, before = git(root, "rev-parse", "FETCH_HEAD"), head_commit(root)
    if commit in git(root, "rev-list", "HEAD").splitlines():
        return ""
    git(root, "tag", "--force", f"image-{before[:12]}", before)
    git(root, "reset", "--quiet", commit)
    return f"a new image: commit {commit[:12]} in place of {before[:12]}, which has the tag image-{before[:12]}"


def main() -> int:
    """Return 2 when git cannot take up the code; otherwise this process becomes the command."""
    try:
        if done := take_up_code(Path.cwd()):
            print(done, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
