#!/usr/bin/env bash
# Install the browser that tests/report/test_report.py opens pages with, where there is none.
set -euo pipefail
command -v chromium google-chrome > /dev/null && exit 0
if command -v apt-get > /dev/null; then
  root=""
  [ "$(id -u)" = 0 ] || root=sudo
  $root apt-get update --quiet=2
  $root apt-get install --quiet=2 --yes --no-install-recommends chromium
else
  "${VENV:-.venv}"/bin/playwright install chromium
fi
