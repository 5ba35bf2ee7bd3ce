#!/usr/bin/env bash
# Stands in for Python and pip in the tests of tools/setup_env.sh, in a second instead of minutes: it answers the questions, keeps
# the calls in $FAKE/calls, and does of each only what the set-up looks at. A call that begins with the words in $FAKE/hang stops
# there for good, one that begins with a line of $FAKE/fail fails.
case "$*" in
    *'version_info[:2] <='*) exit "${FAKE_UNSUPPORTED:-0}" ;;
    *realpath*) echo "$0" && exit ;;
    *'python%d.%d'*) echo python3.11 && exit ;;
    *sysconfig*) echo "$FAKE" && exit ;; # Python.h is there
    *ensurepip*) exit ;;
    -V) echo 'Python 3.11.0' && exit ;;
esac
echo "$*" >> "$FAKE/calls"
site=$(dirname "$(dirname "$0")")/lib/python3.11/site-packages
if [ -e "$FAKE/hang" ] && [[ $* == "$(cat "$FAKE/hang")"* ]]; then
    echo $$ > "$FAKE/reached"
    exec sleep 1000
fi
while read -r failing; do
    if [[ $* == "$failing"* ]]; then
        echo "${FAKE_MESSAGE:-ERROR: of the test}" && exit 1
    fi
done < <(cat "$FAKE/fail" 2> /dev/null)
last=${*: -1}
case "$*" in
    '-m venv '*) mkdir -p "$last/bin" "$last/lib/python3.11/site-packages" && cp "$0" "$last/bin/python" ;;
    # The check of the operators: they are there once a wheel that has them was installed.
    *'mmcv_operators.py check') [ -e "$site/operators" ] ;;
    '-m pip download '*'--dest'*onedl-mmcv=*) mkdir -p "$FAKE/mmcv" "$9" && tar -czf "$9/mmcv.tar.gz" -C "$FAKE" mmcv ;;
    '-m pip wheel '*) touch "$8/mmcv.whl" ;;
    '-m pip install '*mmcv.whl) [ -e "$FAKE/useless" ] || touch "$site/operators" ;;
    '-m pip install --no-build-isolation --no-deps --force-reinstall --no-cache-dir onedl-mmcv'*) touch "$site/operators" ;;
esac
