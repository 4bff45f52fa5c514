//! A replicated key-value store that ordinary Redis clients use unchanged.

fn main() -> std::process::ExitCode {
    kvstore::cli::main()
}
