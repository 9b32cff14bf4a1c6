"""Prints constraints that pin every dependency in pyproject.toml to the oldest version it allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, version = re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)(?:,.*)?", requirement).groups()
    print(f"{name}=={version}")
