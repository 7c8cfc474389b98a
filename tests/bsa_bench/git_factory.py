"""A scratch git repository whose revisions hold kernels."""

import subprocess
from pathlib import Path

IDENTITY = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")


class Repository:
    """A repository in a folder of its own."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments):
        """What git says."""
        done = subprocess.run(
            ["git", "-C", str(self.folder), *IDENTITY, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self, subject, **files):
        """Write files of `kernels/bsa_kernels` (None removes one; `__` stands for a dot) and commit; the commit.

        Without files the commit is of a README that changes.
        """
        package = self.folder / "kernels" / "bsa_kernels"
        for name, text in files.items():
            path = package / name.replace("__", ".")
            if text is None:
                path.unlink()
            else:
                package.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        (self.folder / "README").write_text(subject)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", subject)
        return self.git("rev-parse", "HEAD")

    @property
    def leftovers(self):
        """Work trees, refs and states of a bisection that are there besides those of the start."""
        trees = self.git("worktree", "list", "--porcelain").splitlines()
        found = [line for line in trees if line.startswith("worktree ") and line != f"worktree {self.folder}"]
        found += self.git("for-each-ref", "--format=%(refname)", "refs/bisect").splitlines()
        found += [path.name for path in (self.folder / ".git").glob("BISECT*")]
        status = self.git("status", "--porcelain")
        return [*found, *status.splitlines()]
