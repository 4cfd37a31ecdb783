// Computes reference results with llama.cpp for tests and prints them as JSON.
//
//   oracle MODEL greedy N    stdin: {"prompts": [text, ...]}
//   oracle MODEL logits      stdin: {"ids": [...], "rows": [...], "step": false}
//   oracle MODEL nextn       stdin: as for logits. Logits of the first block for multi-token
//                            prediction; row i predicts the token after ids[i + 1]
//   oracle MODEL embed       stdin: {"ids": [[...], ...], "pooling": 1}    one vector per text; with pooling 0, one per token
//   oracle MODEL ids         stdin: {"texts": [...], "add_special": false, "parse_special": false}
//   oracle MODEL template    stdin: {"conversations": [[{"role": ..., "content": ...}, ...], ...]}
//
// The KV cache is float32 and flash attention is off. Use files with F32 weights: for quantised
// weights, llama.cpp rounds activations to 8 bits, so its results are not exact enough.
//
// For models with GELU, comment out GGML_GELU_FP16 in ggml/src/ggml-cpu/vec.h before the build. Its
// lookup table rounds to float16, which changes logits by 1e-4.
//
// The source distribution of llama-cpp-python contains llama.cpp. Build it with cmake
// (-DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_SERVER=OFF), then compile this file with -std=c++17 and its
// folders include, ggml/include, src, common and vendor, and link the libraries of its build folder:
// llama-common, llama-common-base, cpp-httplib, llama, ggml, ggml-cpu and ggml-base, with -lssl
// -lcrypto -lgomp -lpthread -ldl.
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "chat.h"
#include "llama-ext.h"
#include "llama.h"

using json = nlohmann::ordered_json;
using tokens = std::vector<llama_token>;

static tokens tokenize(const llama_vocab * vocab, const std::string & text, bool add_special, bool parse_special) {
    tokens ids(text.size() + 16);
    const int count = llama_tokenize(vocab, text.data(), text.size(), ids.data(), ids.size(), add_special, parse_special);
    if (count < 0) throw std::runtime_error("llama_tokenize failed");
    ids.resize(count);
    return ids;
}

struct Context {
    llama_context * it;

    Context(llama_model * model, int length, llama_context_params params = llama_context_default_params()) {
        params.n_ctx = params.n_batch = params.n_ubatch = length;
        params.type_k = params.type_v = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        it = llama_init_from_model(model, params);
        if (!it) throw std::runtime_error("no context");
    }

    ~Context() { llama_free(it); }

    // Decodes ids that follow `first` earlier tokens, and keeps the logits of all ids.
    void decode(const tokens & ids, int first) {
        llama_batch batch = llama_batch_init(ids.size(), 0, 1);
        batch.n_tokens = ids.size();
        for (int i = 0; i < batch.n_tokens; i++) {
            batch.token[i] = ids[i];
            batch.pos[i] = first + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        const int status = llama_decode(it, batch);
        llama_batch_free(batch);
        if (status) throw std::runtime_error("llama_decode failed with " + std::to_string(status));
    }
};

static llama_token likeliest(const float * logits, int vocabulary) {
    llama_token best = 0;
    for (int i = 1; i < vocabulary; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static json greedy(llama_model * model, const json & asked, int count) {
    const auto * vocab = llama_model_get_vocab(model);
    const int vocabulary = llama_vocab_n_tokens(vocab);
    json answers = json::array();
    for (const auto & prompt : asked.at("prompts")) {
        const tokens ids = tokenize(vocab, prompt.get<std::string>(), true, true);
        Context context(model, ids.size() + count);
        context.decode(ids, 0);
        tokens drawn;
        int row = ids.size() - 1;
        while ((int) drawn.size() < count) {
            const llama_token next = likeliest(llama_get_logits_ith(context.it, row), vocabulary);
            if (llama_vocab_is_eog(vocab, next)) break;
            drawn.push_back(next);
            context.decode({next}, ids.size() + drawn.size() - 1);
            row = 0;
        }
        answers.push_back({{"prompt", prompt}, {"ids", ids}, {"greedy", drawn}});
    }
    return answers;
}

static json logits(llama_model * model, const json & asked) {
    const auto ids = asked.at("ids").get<tokens>();
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    const bool step = asked.value("step", false);
    Context context(model, ids.size());
    if (!step) context.decode(ids, 0);
    json rows = json::array();
    int next = 0;
    for (const int row : asked.at("rows")) {
        for (; step && next <= row; next++) context.decode({ids[next]}, next);
        const float * found = llama_get_logits_ith(context.it, step ? 0 : row);
        rows.push_back(std::vector<float>(found, found + vocabulary));
    }
    return rows;
}

static json nextn(llama_model * model, const json & asked) {
    const auto ids = asked.at("ids").get<tokens>();
    const int count = ids.size() - 1;
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    const size_t width = llama_model_n_embd(model);
    Context context(model, ids.size());
    llama_set_embeddings_nextn(context.it, true, false);
    context.decode(ids, 0);
    const float * hidden = llama_get_embeddings_nextn(context.it);
    auto params = llama_context_default_params();
    params.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    Context block(model, ids.size(), params);
    llama_batch_ext * batch = llama_batch_ext_init(block.it);
    for (int i = 0; i < count; i++) {
        const int at = llama_batch_ext_add_token(batch, 0, ids[i + 1]);
        const llama_pos position = i + 1;
        llama_batch_ext_set_pos(batch, at, &position);
        llama_batch_ext_set_embd_token(batch, at, {hidden + i * width, 1, width});
        llama_batch_ext_set_output_logits(batch, at, true);
    }
    const int status = llama_process(block.it, LLAMA_PROCESS_TYPE_DECODE, batch);
    if (status) throw std::runtime_error("llama_process failed with " + std::to_string(status));
    json rows = json::array();
    for (const int row : asked.at("rows")) {
        const float * found = llama_get_logits_ith(block.it, row);
        rows.push_back(std::vector<float>(found, found + vocabulary));
    }
    llama_batch_ext_free(batch);
    return rows;
}

static json embed(llama_model * model, const json & asked) {
    auto params = llama_context_default_params();
    params.embeddings = true;
    params.pooling_type = (enum llama_pooling_type) asked.value("pooling", -1);
    json found = json::array();
    for (const auto & text : asked.at("ids")) {
        const auto ids = text.get<tokens>();
        Context context(model, ids.size(), params);
        context.decode(ids, 0);
        const auto pooling = llama_pooling_type(context.it);
        const int width = pooling == LLAMA_POOLING_TYPE_RANK ? llama_model_n_cls_out(model) : llama_model_n_embd_out(model);
        if (pooling != LLAMA_POOLING_TYPE_NONE) {
            const float * vector = llama_get_embeddings_seq(context.it, 0);
            found.push_back(std::vector<float>(vector, vector + width));
            continue;
        }
        json states = json::array();
        for (size_t i = 0; i < ids.size(); i++) {
            const float * state = llama_get_embeddings_ith(context.it, i);
            states.push_back(std::vector<float>(state, state + width));
        }
        found.push_back(states);
    }
    return found;
}

static json ids(llama_model * model, const json & asked) {
    json found = json::array();
    for (const auto & text : asked.at("texts")) {
        found.push_back(tokenize(
            llama_model_get_vocab(model),
            text.get<std::string>(),
            asked.value("add_special", false),
            asked.value("parse_special", false)));
    }
    return found;
}

static json rendered(llama_model * model, const json & asked) {
    const auto templates = common_chat_templates_init(model, "");
    json found = json::array();
    for (const auto & conversation : asked.at("conversations")) {
        common_chat_templates_inputs inputs;
        inputs.messages = common_chat_msgs_parse_oaicompat(common_json::parse(conversation.dump()));
        found.push_back(common_chat_templates_apply(templates.get(), inputs).prompt);
    }
    return found;
}

int main(int argc, char ** argv) try {
    if (argc < 3) throw std::runtime_error("oracle MODEL greedy|logits|nextn|embed|ids|template [N]");
    const std::string what = argv[2];
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    auto params = llama_model_default_params();
    params.load_mtp = what == "nextn";
    params.vocab_only = what == "ids" || what == "template";
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (!model) throw std::runtime_error(std::string("llama.cpp does not load ") + argv[1]);
    const json asked = json::parse(std::cin);
    json answer;
    if (what == "greedy") answer = greedy(model, asked, argc > 3 ? std::stoi(argv[3]) : 64);
    else if (what == "logits") answer = logits(model, asked);
    else if (what == "nextn") answer = nextn(model, asked);
    else if (what == "embed") answer = embed(model, asked);
    else if (what == "ids") answer = ids(model, asked);
    else if (what == "template") answer = rendered(model, asked);
    else throw std::runtime_error("unknown: " + what);
    std::cout << answer.dump() << std::endl;
    llama_model_free(model);
    return 0;
} catch (const std::exception & error) {
    std::fprintf(stderr, "oracle: %s\n", error.what());
    return 1;
}
