#!/usr/bin/env bash
# Build llama.cpp's programs and the oracle for tests from the source distribution of llama-cpp-python.
# build.sh FOLDER: downloads into it and leaves FOLDER/oracle, FOLDER/llama-quantize and FOLDER/llama-perplexity.
set -euo pipefail
version=0.3.36
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
source=$folder/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -d "$source" ]; then
    python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$folder" "llama-cpp-python==$version"
    tar -xzf "$folder"/llama_cpp_python-$version.tar.gz -C "$folder"
fi
cmake -S "$source" -B "$source/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_MTMD=OFF >/dev/null
cmake --build "$source/build" --target llama-quantize llama-perplexity --parallel "$(nproc)" >/dev/null
libraries=$source/build
c++ -std=c++17 -O2 -o "$folder/oracle" "$here/oracle.cc" \
    -I"$source/include" -I"$source/ggml/include" -I"$source/common" -I"$source/vendor" \
    "$libraries"/common/libllama-common.a "$libraries"/common/libllama-common-base.a \
    "$libraries"/vendor/cpp-httplib/libcpp-httplib.a "$libraries"/src/libllama.a \
    "$libraries"/ggml/src/libggml.a "$libraries"/ggml/src/libggml-cpu.a "$libraries"/ggml/src/libggml-base.a \
    -lgomp -lpthread -ldl -lm
ln -sf "$source"/build/bin/llama-quantize "$source"/build/bin/llama-perplexity "$folder"
