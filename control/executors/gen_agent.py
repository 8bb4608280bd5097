#!/usr/bin/env python3
"""An executor that has an agent's command line do the work: docs/executors/agent_cli.md.

Its arguments are the agent's command; the last is the request. The agent runs once, without a terminal, in the folder of the inputs, and
is told on standard input what to write; if an argument is {prompt}, it is replaced by the path of a file that says so instead. Afterwards
exactly the declared files must be there, and the inputs untouched.

It needs Python 3.8 and its standard library only.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys

VERSION = "1"
PLACEHOLDER = "{prompt}"
SHOWN = 10

TASK = """\
Work in the current folder, without asking questions: nobody will answer. Write exactly the files listed below, each for its objectives,
drawing only from the authorities and other files that are in this folder. Where a template is named, follow it as instructions; its
placeholders are yours to fill. A file whose name ends in .json is one strict JSON document. Change no other file, and leave no other file
behind; temporary files belong in $TMPDIR.
"""


class Refusal(Exception):
    """Why there is no result."""


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def prompt(request):
    """What the agent is told: a function of the request and the objectives, and nothing else."""
    objectives = {objective["id"]: objective for objective in read_json("control/objectives.json")}
    paths = {file["sha256"]: file["path"] for file in request["inputs_manifest"]["files"]}
    hashes = request["pre_gen_capsule"]["authority_set_hashes"]
    lines = [TASK]
    for artifact in request["phase_config"]["artifacts"]:
        lines.append("File: {}".format(artifact["path"]))
        if "template" in artifact:
            lines.append("Template: {}".format(artifact["template"]))
        for identifier in artifact["objectives"]:
            if identifier not in objectives:
                raise Refusal("{}: there is no objective {}".format(artifact["path"], identifier))
            objective = objectives[identifier]
            authority = objective["source"]["authority_id"]
            source = paths.get(hashes.get(authority))
            if source is None:
                raise Refusal("{}: the text of its authority {} is not among the inputs".format(artifact["path"], authority))
            lines.append("Objective {}: {}".format(identifier, objective["statement"]))
            if objective.get("constraints"):
                lines.append("Constraints: {}".format(json.dumps(objective["constraints"], ensure_ascii=False, sort_keys=True)))
            lines.append("Authority {}: {}".format(authority, source))
        lines.append("")
    return "\n".join(lines)


def run(command, text):
    """Runs the agent to its end. It gets a home that is thrown away with everything in it."""
    temporary = os.environ["TMPDIR"]
    environment = dict(os.environ)
    if "HOME" not in environment:
        environment["HOME"] = os.path.join(temporary, "home")
        os.makedirs(environment["HOME"], exist_ok=True)
    place = os.path.join(temporary, "gen_agent.prompt")
    with open(place, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    words = [place if word == PLACEHOLDER else word for word in command]
    try:
        with open(os.devnull if PLACEHOLDER in command else place, "rb") as stdin:
            status = subprocess.run(words, stdin=stdin, env=environment, check=False).returncode
    except OSError as error:
        message = "the agent {} cannot be started: {}; sandbox.read must name where it is installed"
        raise Refusal(message.format(words[0], error.strerror)) from None
    if status != 0:
        how = "signal {}".format(-status) if status < 0 else "status {}".format(status)
        raise Refusal("the agent ended with {}".format(how))


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def files():
    """Every path under the current folder that is no folder, and whether it is a regular file. Links are not followed."""
    found = {}
    for folder, folders, names in os.walk("."):
        for name in names + [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            path = os.path.join(folder, name)
            found[path[2:]] = stat.S_ISREG(os.lstat(path).st_mode)
    return found


def refuse(what, paths):
    if paths:
        more = " and {} more".format(len(paths) - SHOWN) if len(paths) > SHOWN else ""
        raise Refusal("{}: {}{}".format(what, ", ".join(ascii(path)[1:-1] for path in sorted(paths)[:SHOWN]), more))


def inspect(request, request_path):
    """Refuses everything but the declared files beside untouched inputs."""
    inputs = {file["path"]: file["sha256"] for file in request["inputs_manifest"]["files"]}
    wanted = [artifact["path"] for artifact in request["phase_config"]["artifacts"]]
    found = files()
    known = set(inputs) | set(wanted) | {os.path.relpath(request_path)}
    refuse("the agent left what is not declared", [path for path in found if path not in known])
    refuse("the agent did not write", [path for path in wanted if path not in found])
    refuse("the agent left what is no regular file", [path for path in wanted if not found[path]])
    changed = [path for path in inputs if path not in wanted and (not found.get(path) or digest(path) != inputs[path])]
    refuse("the agent changed its inputs", changed)
    refuse("the agent left empty", [path for path in wanted if os.path.getsize(path) == 0])
    return wanted


def main():
    command, request_path = sys.argv[1:-1], sys.argv[-1]
    if not command:
        raise Refusal("no agent is named: its command follows gen_agent.py in the executor's command")
    request = read_json(request_path)
    config = request["phase_config"]
    if config["phase"] != "GEN":
        raise Refusal("this executor does GEN alone")
    run(command, prompt(request))
    reported = []
    for path in inspect(request, request_path):
        reported.append({"path": path, "hash": digest(path), "bytes": os.path.getsize(path)})
    report = {
        "schema_version": request["schema_version"],
        "phase": config["phase"],
        "artifacts": reported,
        "tool_versions": {"gen_agent": VERSION},
    }
    with open(config["outputs"]["execution_report"], "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(report, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        print("error: {}".format(refusal), file=sys.stderr)
        sys.exit(1)
