# Sourced by the Makefile: install_plait SPEC puts plait (editable) and its locked dependencies into .venv, with uv when there is one, else with pip.
# Bytecode is compiled once here (pip does so by itself, uv when asked): else every start compiles the libraries anew, 10 s of it where Python may not write.
install_plait() {
    set -e
    if .venv/bin/python -m pip install -q --disable-pip-version-check uv 2>/dev/null; then
        export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
        .venv/bin/uv pip install -q --compile-bytecode --python .venv/bin/python -c constraints.txt -e "$1"
    else
        .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e "$1"
    fi
}
