"""Profiles as files: found by name or by path, read, their format and keys checked.

A name is that of a file below ``hardware_profiles`` in the current folder, where ``splitsearch profile`` writes, or of
one that is shipped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import hardware_profiles
from spaces.errors import SpecError, nearest
from spaces.section import Section
from spaces.yaml_text import read_yaml

FORMAT = 1
Kind = Literal["devices", "links"]
OWN_FOLDER = Path("hardware_profiles")
SHIPPED = Path(hardware_profiles.__file__).parent


def profile_names(folder: Kind) -> list[str]:
    """Of the profiles that there are."""
    return sorted({path.stem for place in (OWN_FOLDER, SHIPPED) for path in (place / folder).glob("*.yaml")})


def read_profile(name: str, folder: Kind, key: str) -> Section:
    """What stands in a profile, its format read.

    Args:
        name: of a shipped profile, or a path to a ``.yaml`` file.
        folder: which kind of profile.
        key: of the study file or the command line, for messages.

    Raises:
        SpecError: no such profile, or one of another format.
    """
    own = OWN_FOLDER / folder / f"{name}.yaml"
    path = own if os.path.isfile(own) else SHIPPED / folder / own.name  # not Path's, which raises for long names
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    if not os.path.isfile(path):
        known = [*profile_names(folder), *(["local"] if folder == "devices" else [])]
        raise SpecError(key, name, f"no such profile; {nearest(name, known)}. A path to a .yaml file works too")
    data = read_yaml(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise SpecError(key, str(path), f"a profile with format: {FORMAT} is needed")
    section = Section(key, data)
    section.take("format")
    section.take("note", None)
    return section
