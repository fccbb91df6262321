// What `cargo xtask compare` runs llama.cpp with: a program of its C interface, so that no Python is in what is measured.
//
//   llama_driver MODEL.gguf THREADS PROMPTS NEW_TOKENS MODE FLASH_ATTENTION LOADING
//   llama_driver info
//
// PROMPTS has token ids, one prompt on a line. Tokens are chosen greedily, and the end of a text ends nothing. Answers have the
// form of `allotrope generate --format json`, each written as soon as it is there.
//   MODE             each: one prompt after the other; together: all as one batch; logits: those after the first prompt, f32
//   FLASH_ATTENTION  on, off
//   LOADING          mmap: the file as it is mapped; read: into memory of its own
//   info             says what the library was built for
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

using Clock = std::chrono::steady_clock;
using Tokens = std::vector<llama_token>;

// Tokens that the cache holds, of all sequences together. Its default, what the model was trained with, would take gigabytes.
constexpr uint32_t kContext = 1024;
// The most tokens that are computed at a time.
constexpr uint32_t kBatch = 512;

double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

[[noreturn]] void fail(const std::string &message) {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::exit(1);
}

std::vector<Tokens> read_prompts(const char *path) {
    std::ifstream file(path);
    std::vector<Tokens> prompts;
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        Tokens tokens;
        for (llama_token token; words >> token;) tokens.push_back(token);
        if (tokens.empty()) fail(std::string(path) + ": a prompt without tokens");
        prompts.push_back(std::move(tokens));
    }
    if (prompts.empty()) fail(std::string(path) + ": no prompts");
    return prompts;
}

class Engine {
public:
    Engine(const char *path, int threads, size_t sequences, bool flash_attention, bool map) {
        const auto log_errors = [](ggml_log_level level, const char *text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        };
        llama_log_set(log_errors, nullptr);
        llama_backend_init();
        llama_model_params model_params = llama_model_default_params();
        model_params.load_mode = map ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
        model_ = llama_model_load_from_file(path, model_params);
        if (!model_) fail(std::string("llama.cpp can't load ") + path);
        llama_context_params params = llama_context_default_params();
        params.n_ctx = kContext;
        params.n_batch = kBatch;
        params.n_ubatch = kBatch;
        params.n_seq_max = static_cast<uint32_t>(sequences);
        params.n_threads = threads;
        params.n_threads_batch = threads;
        params.flash_attn_type = flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        context_ = llama_init_from_model(model_, params);
        if (!context_) fail("llama.cpp can't make a context");
        vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
    }

    // Runs what `batch` has.
    void decode(const llama_batch &batch) {
        if (int code = llama_decode(context_, batch)) fail("llama_decode failed: " + std::to_string(code));
    }

    // The most likely token after position `index` of the last batch.
    llama_token greedy(int index) {
        const float *row = llama_get_logits_ith(context_, index);
        return static_cast<llama_token>(std::max_element(row, row + vocabulary_) - row);
    }

    const float *logits(int index) { return llama_get_logits_ith(context_, index); }
    int vocabulary() const { return vocabulary_; }
    void forget() { llama_memory_clear(llama_get_memory(context_), false); }

private:
    llama_model *model_ = nullptr;
    llama_context *context_ = nullptr;
    int vocabulary_ = 0;
};

void print(const Tokens &tokens, size_t prompt_tokens, double prefill, const std::vector<double> &intervals) {
    std::printf("{\"tokens\":[");
    for (size_t i = 0; i < tokens.size(); i++) std::printf("%s%d", i ? "," : "", tokens[i]);
    std::printf("],\"prompt_tokens\":%zu,\"timings\":{\"prefill_seconds\":%.9f,\"inter_token_seconds\":[", prompt_tokens, prefill);
    for (size_t i = 0; i < intervals.size(); i++) std::printf("%s%.9f", i ? "," : "", intervals[i]);
    std::printf("]}}\n");
    std::fflush(stdout);
}

void answer(Engine &engine, Tokens prompt, int new_tokens) {
    engine.forget();
    const auto started = Clock::now();
    engine.decode(llama_batch_get_one(prompt.data(), static_cast<int>(prompt.size())));
    llama_token token = engine.greedy(-1);
    auto last = Clock::now();
    const double prefill = seconds(started, last);
    Tokens tokens{token};
    std::vector<double> intervals;
    while (static_cast<int>(tokens.size()) < new_tokens) {
        engine.decode(llama_batch_get_one(&token, 1));
        token = engine.greedy(-1);
        const auto now = Clock::now();
        intervals.push_back(seconds(last, now));
        last = now;
        tokens.push_back(token);
    }
    print(tokens, prompt.size(), prefill, intervals);
}

void add(llama_batch &batch, llama_token token, size_t position, size_t sequence, bool logits) {
    const int at = batch.n_tokens++;
    batch.token[at] = token;
    batch.pos[at] = static_cast<llama_pos>(position);
    batch.n_seq_id[at] = 1;
    batch.seq_id[at][0] = static_cast<llama_seq_id>(sequence);
    batch.logits[at] = logits;
}

void answer_together(Engine &engine, const std::vector<Tokens> &prompts, int new_tokens) {
    size_t total = 0;
    for (const Tokens &prompt : prompts) total += prompt.size();
    if (total > kBatch) fail("the prompts have more tokens together than one batch takes");
    llama_batch batch = llama_batch_init(static_cast<int>(total), 0, 1);
    std::vector<int> rows;
    for (size_t sequence = 0; sequence < prompts.size(); sequence++) {
        const Tokens &prompt = prompts[sequence];
        for (size_t i = 0; i < prompt.size(); i++) add(batch, prompt[i], i, sequence, i + 1 == prompt.size());
        rows.push_back(batch.n_tokens - 1);
    }
    const auto started = Clock::now();
    engine.decode(batch);
    std::vector<Tokens> tokens;
    for (int row : rows) tokens.push_back({engine.greedy(row)});
    auto last = Clock::now();
    const double prefill = seconds(started, last);
    std::vector<double> intervals;
    for (int step = 0; step + 1 < new_tokens; step++) {
        batch.n_tokens = 0;
        for (size_t sequence = 0; sequence < prompts.size(); sequence++)
            add(batch, tokens[sequence].back(), prompts[sequence].size() + step, sequence, true);
        engine.decode(batch);
        for (size_t sequence = 0; sequence < prompts.size(); sequence++)
            tokens[sequence].push_back(engine.greedy(static_cast<int>(sequence)));
        const auto now = Clock::now();
        intervals.push_back(seconds(last, now));
        last = now;
    }
    for (size_t sequence = 0; sequence < prompts.size(); sequence++)
        print(tokens[sequence], prompts[sequence].size(), prefill, intervals);
    llama_batch_free(batch);
}

}  // namespace

int main(int count, char **arguments) {
    if (count == 2 && std::string(arguments[1]) == "info") {
        std::printf("%s\n", llama_print_system_info());
        return 0;
    }
    if (count != 8) fail("usage: llama_driver MODEL.gguf THREADS PROMPTS NEW_TOKENS MODE FLASH_ATTENTION LOADING");
    const int threads = std::atoi(arguments[2]), new_tokens = std::atoi(arguments[4]);
    const std::vector<Tokens> prompts = read_prompts(arguments[3]);
    const std::string mode = arguments[5], flash_attention = arguments[6], loading = arguments[7];
    Engine engine(arguments[1], threads, mode == "together" ? prompts.size() : 1, flash_attention == "on", loading == "mmap");
    if (mode == "each") {
        for (const Tokens &prompt : prompts) answer(engine, prompt, new_tokens);
    } else if (mode == "together") {
        answer_together(engine, prompts, new_tokens);
    } else if (mode == "logits") {
        Tokens prompt = prompts[0];
        engine.decode(llama_batch_get_one(prompt.data(), static_cast<int>(prompt.size())));
        std::fwrite(engine.logits(-1), sizeof(float), engine.vocabulary(), stdout);
    } else {
        fail("unknown mode " + mode);
    }
    return 0;
}
