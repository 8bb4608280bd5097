#!/usr/bin/env python3
"""The reference executor: the contract of docs/executors/gen_executor.md in one short program.

It needs Python 3 and its standard library only, opens no socket, reads no clock, and does the same each time: every artifact lists the
statements of its objectives, each with the authority that it draws from. An artifact whose path ends in .json is JSON, any other is text;
both satisfy the pipeline that `git cbia init` writes.
"""

import hashlib
import json
import os
import sys

VERSION = "2"


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write(path, data):
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def sources(request):
    """The path of each authority: the capsule has their hashes by id, the manifest has the files by hash."""
    paths = {file["sha256"]: file["path"] for file in request["inputs_manifest"]["files"]}
    hashes = request["pre_gen_capsule"]["authority_set_hashes"]
    return {authority: paths[digest] for authority, digest in hashes.items() if digest in paths}


def render(artifact, objectives, authorities):
    names, statements = artifact["objectives"], []
    for name in names:
        objective = objectives[name]
        authority = objective["source"]["authority_id"]
        statements.append((objective["statement"], "from {} ({})".format(authority, authorities.get(authority))))
    if artifact["path"].endswith(".json"):
        document = {"objectives": names, "rules": [" ".join(statement) for statement in statements]}
        return json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    return "".join("{}: {}\n  {}\n".format(name, *statement) for name, statement in zip(names, statements))


def main():
    request = read_json(sys.argv[-1])
    config = request["phase_config"]
    objectives = {objective["id"]: objective for objective in read_json("control/objectives.json")}
    authorities = sources(request)
    reported = []
    for artifact in config["artifacts"]:
        data = render(artifact, objectives, authorities).encode("utf-8")
        write(artifact["path"], data)
        reported.append({"path": artifact["path"], "hash": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
    report = {
        "schema_version": request["schema_version"],
        "phase": config["phase"],
        "artifacts": reported,
        "tool_versions": {"gen_local": VERSION},
    }
    write(config["outputs"]["execution_report"], (json.dumps(report, indent=2, sort_keys=True) + "\n").encode("utf-8"))


if __name__ == "__main__":
    main()
