"""Write ``data/compiled.json`` from the YAML files: ``python -m zhenfa.catalog.compile``."""

from __future__ import annotations

import json

from zhenfa.catalog import files


def compiled() -> str:
    """Return the text of ``compiled.json`` as the YAML files now stand."""
    entries = {}
    for folder in files.FOLDERS:
        for path in files.paths(folder):
            text = path.read_bytes()
            name = path.relative_to(files.ROOT).as_posix()
            entries[name] = {"digest": files.digest(text), "data": files.parse(path, text)}
    lines = [f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}" for name, entry in entries.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Write the file."""
    files.COMPILED.write_text(compiled(), encoding="utf-8")


if __name__ == "__main__":
    main()
