//! A CUDA driver that runs PTX on the CPU.

mod driver;
pub mod forms;
pub mod machine;
pub mod program;
pub mod ptx;
pub mod testing;
