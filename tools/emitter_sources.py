"""Options of other systems, read from their own source without importing it.

Each reader returns ``{"--option": {"kind": ..., "choices": [...], "many": true}}`` of one release, as the files of
``src/zhenfa/catalog/data/targets`` record it.
"""

from __future__ import annotations

import ast
from pathlib import Path

Option = dict[str, object]
KINDS = {"int": "int", "float": "float", "bool": "flag", "str": "str"}


def vllm_options(package: Path) -> dict[str, Option]:
    """Return the options of ``vllm serve``: ``engine/arg_utils.py`` with the fields of ``config/*.py``."""
    fields = _config_fields(package / "config")
    tree = ast.parse((package / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    owner = {
        target.id: call.args[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(call := node.value, ast.Call)
        and isinstance(call.func, ast.Name) and call.func.id == "get_kwargs" and isinstance(call.args[0], ast.Name)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip
    found: dict[str, Option] = {}
    for call in _calls(tree):
        option = _by_keywords(call)
        for word in call.keywords:
            for part in ast.walk(word.value) if word.arg is None else ():
                if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) and part.value.id in owner:
                    name = ast.literal_eval(part.slice)
                    option = fields.get((owner[part.value.id], name), option)
        for flag in _flags(call):
            found[flag] = option
    for call in _calls(ast.parse((package / "entrypoints" / "common" / "cli_args.py").read_text(encoding="utf-8"))):
        found.update({flag: _by_keywords(call) for flag in _flags(call)})
    front = package / "entrypoints" / "openai" / "cli_args.py"
    for place in (front, package / "entrypoints" / "common" / "cli_args.py"):
        if place.exists():
            found.update(_dataclass_options(ast.parse(place.read_text(encoding="utf-8")), {}))
    return found


def _config_fields(folder: Path) -> dict[tuple[str, str], Option]:
    """Return the fields of vLLM's configuration classes by class and name, named literals looked up."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]
    literals = {name: node for tree in trees for name, node in _assigned(tree).items()}
    return {
        (owner.name, item.target.id): _annotated(item.annotation, literals)
        for tree in trees for owner in ast.walk(tree) if isinstance(owner, ast.ClassDef)
        for item in owner.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }  # fmt: skip


def sglang_options(package: Path) -> dict[str, Option]:
    """Return the options of ``sglang.launch_server``: ``srt/arg_groups/fields/*.py``."""
    groups = package / "srt" / "arg_groups"
    literals = _assigned(ast.parse((groups / "choices.py").read_text(encoding="utf-8")))
    found: dict[str, Option] = {}
    for path in sorted((groups / "fields").glob("*.py")):
        found.update(_dataclass_options(ast.parse(path.read_text(encoding="utf-8")), literals))
    for call in _calls(ast.parse((package / "srt" / "server_args.py").read_text(encoding="utf-8"))):
        found.update({flag: _by_keywords(call) for flag in _flags(call)})
    return found


def router_options(path: Path) -> dict[str, Option]:
    """Return the options of a router: its ``router_args.py``."""
    return {
        flag: _by_keywords(call)
        for call in _calls(ast.parse(path.read_text(encoding="utf-8"))) for flag in _flags(call)
    }  # fmt: skip


def _dataclass_options(tree: ast.Module, literals: dict[str, ast.expr]) -> dict[str, Option]:
    """Return an option for each field of the classes of a module; ``Arg(...)`` adds aliases and choices."""
    found: dict[str, Option] = {}
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for item in owner.body:
            if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
                continue
            option = _annotated(item.annotation, literals)
            names = ["--" + item.target.id.replace("_", "-")]
            for call in (node for node in ast.walk(item.annotation) if isinstance(node, ast.Call)):
                for word in call.keywords:
                    if word.arg == "aliases":
                        names += ast.literal_eval(word.value)
                    elif word.arg == "choices" and (chosen := _choices(word.value, literals)):
                        option = {**option, "choices": chosen}
            found.update(dict.fromkeys(names, option))
    return found


def _annotated(node: ast.expr, literals: dict[str, ast.expr]) -> Option:
    """Return what a type annotation says of an option."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("A", "Annotated", "SkipValidation"):
        node = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
    names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    chosen = _choices(node, literals)
    kind = next((KINDS[name] for name in names if name in KINDS), "str")
    if any(name in ("list", "List", "tuple") for name in names):
        return {"kind": kind, "many": True}
    return {"kind": "str", "choices": chosen} if chosen else {"kind": kind}


def _choices(node: ast.expr, literals: dict[str, ast.expr]) -> list[str]:
    """Return the texts that a ``Literal``, a list, or a name of one allows."""
    if isinstance(node, ast.Name) and node.id in literals:
        return _choices(literals[node.id], {k: v for k, v in literals.items() if k != node.id})
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return [text for part in parts for text in _choices(part, literals)]
    if isinstance(node, ast.List | ast.Tuple):
        return [text for part in node.elts for text in _choices(part, literals)]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Optional":
        return _choices(node.slice, literals)
    if isinstance(node, ast.BinOp):
        return _choices(node.left, literals) + _choices(node.right, literals)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in tree.body if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [
        node for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
    ]  # fmt: skip


def _flags(call: ast.Call) -> list[str]:
    """Return the names of one ``add_argument``; a prefix that is put before them is left out."""
    found = []
    for one in call.args:
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            found.append(one.value)
        elif isinstance(one, ast.JoinedStr):
            found.append("".join(part.value for part in one.values if isinstance(part, ast.Constant)))
    return [flag for flag in found if flag.startswith("--")]


def _by_keywords(call: ast.Call) -> Option:
    words = {word.arg: word.value for word in call.keywords}
    action = ast.unparse(words["action"]).strip("'\"") if "action" in words else ""
    if action in ("store_true", "store_false"):
        return {"kind": "flag"}
    found: Option = {"kind": KINDS.get(ast.unparse(words["type"]), "str") if "type" in words else "str"}
    if "choices" in words and (chosen := _choices(words["choices"], {})):
        found["choices"] = chosen
    if "nargs" in words and ast.unparse(words["nargs"]).strip("'\"") in ("+", "*"):
        found["many"] = True
    return found
