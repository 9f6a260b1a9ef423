//! The command `tidegate`; all of it is in [`tidegate::cli`].

#[global_allocator]
static HEAP: tidegate_core::memory::Heap = tidegate_core::memory::Heap;

fn main() -> std::process::ExitCode {
    let code = tidegate::cli::run(std::env::args().collect());
    std::process::ExitCode::from(u8::try_from(code).unwrap_or(1))
}
