//! Every scenario in every way: the transcripts must be those of the kernel.

mod judge;

macro_rules! tests {
    ($($name:ident: $warm_up:ident $(, $why:literal)?;)*) => {$(
        #[test]
        fn $name() {
            judge::judge(stringify!($name));
        }
    )*};
}

vmmc_semantics::for_every_scenario!(tests);
