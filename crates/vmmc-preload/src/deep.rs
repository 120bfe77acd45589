//! Libraries that a program loads with `RTLD_DEEPBIND`: they look for a function among their own libraries first, and find the C library's behind
//! the hook. PHP loads its extensions so, and one that polls what another part of the program reads would wait for ever. After the
//! loading, what such a library would call is directed to the hooks: everything else stays bound as the program wanted it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::boundary::{catch, keep_errno, look_up, look_up_all, next};
use crate::lookup::{Own, native_dlsym, own};
use crate::stdio::before;

before!(dlopen, before_dlopen);

/// A name without a path is looked for where the caller's own object says, and `$ORIGIN` is where that is: only the native function, called by the
/// caller, knows.
extern "C" fn before_dlopen(name: *const c_char, flags: c_int) -> *mut c_void {
    // SAFETY: null, or the program's string.
    let name = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_bytes());
    let is_same_to_all = name.is_some_and(|name| name.contains(&b'/') && !name.contains(&b'$'));
    look_up_before();
    if flags & libc::RTLD_DEEPBIND != 0 && is_same_to_all {
        return load_deep as *mut c_void;
    }
    look_up("dlopen\0")
}

/// While the linker runs the constructors of what it loads nobody else can look anything up, and one of them may wait for another thread's call.
fn look_up_before() {
    static ONCE: AtomicBool = AtomicBool::new(false);
    if !ONCE.swap(true, Ordering::Relaxed) {
        catch((), || {
            look_up_all();
            crate::waiting::wait_finely();
        });
    }
}

unsafe extern "C-unwind" fn load_deep(name: *const c_char, flags: c_int) -> *mut c_void {
    let native = next!(dlopen: fn(*const c_char, c_int) -> *mut c_void);
    let before = catch(usize::MAX, count);
    let library = native(name, flags);
    if !library.is_null() {
        keep_errno(|| catch((), || direct_to_hooks(library, before)));
    }
    library
}

/// Objects that are loaded now. New ones come behind them.
fn count() -> usize {
    let mut objects = 0;
    each_object(&mut |_| objects += 1);
    objects
}

/// `Elf64_Rela`.
#[repr(C)]
struct Relocation {
    offset: u64,
    info: u64,
    addend: i64,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

/// An object, and what the dynamic linker knows of it.
struct Object {
    base: usize,
    symbols: *const Symbol,
    names: *const c_char,
    /// What it wants of others: functions that it calls, and addresses that it takes.
    relocations: [&'static [Relocation]; 2],
    /// Made read-only when it was loaded.
    sealed: Range<usize>,
}

fn each_object(see: &mut dyn FnMut(&libc::dl_phdr_info)) {
    extern "C" fn one(info: *mut libc::dl_phdr_info, _: usize, see: *mut c_void) -> c_int {
        // SAFETY: the linker's description, and the closure that was passed along.
        unsafe { (*see.cast::<&mut dyn FnMut(&libc::dl_phdr_info)>())(&*info) };
        0
    }
    let mut see = see;
    // SAFETY: the closure outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(one), (&raw mut see).cast()) };
}

/// Directs to the hooks what the objects after the first `known` would call of the C library instead, as the scope of `library` has it.
fn direct_to_hooks(library: *mut c_void, known: usize) {
    let Some(own) = own() else { return };
    let mut objects = Vec::new();
    let mut seen = 0;
    each_object(&mut |info| {
        seen += 1;
        if seen > known {
            objects.extend(Object::of(info));
        }
    });
    for object in &objects {
        object.direct(library, own);
    }
    // Of a name that was not found no word may be left: the program's loading has succeeded.
    // SAFETY: a plain call.
    unsafe { libc::dlerror() };
}

impl Object {
    /// `None` where it wants nothing of others.
    fn of(info: &libc::dl_phdr_info) -> Option<Self> {
        let base = info.dlpi_addr as usize;
        // SAFETY: the linker's own list of the object's parts.
        let parts = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        let part = |kind| parts.iter().find(|part| part.p_type == kind);
        let mut dynamic = (base + part(libc::PT_DYNAMIC)?.p_vaddr as usize) as *const [usize; 2];
        let sealed = part(libc::PT_GNU_RELRO).map_or(0..0, |part| {
            let begin = base + part.p_vaddr as usize;
            begin..begin + part.p_memsz as usize
        });
        let mut found = [0; 32];
        // SAFETY: the list ends with a zero.
        while let [tag @ 1..=usize::MAX, value] = unsafe { *dynamic } {
            if let Some(place) = found.get_mut(tag) {
                *place = value;
            }
            dynamic = dynamic.wrapping_add(1);
        }
        if found[DT_SYMTAB] == 0 || found[DT_JMPREL] != 0 && found[DT_PLTREL] != DT_RELA {
            return None;
        }
        let list = |at: usize, bytes: usize| match at {
            0 => &[][..],
            // SAFETY: the linker has read this list, and nobody unloads the object before whoever loads it has it.
            at => unsafe {
                std::slice::from_raw_parts(at as *const _, bytes / size_of::<Relocation>())
            },
        };
        Some(Self {
            base,
            symbols: found[DT_SYMTAB] as *const _,
            names: found[DT_STRTAB] as *const _,
            relocations: [
                list(found[DT_JMPREL], found[DT_PLTRELSZ]),
                list(found[DT_RELA], found[DT_RELASZ]),
            ],
            sealed,
        })
    }

    fn direct(&self, library: *mut c_void, own: Own) {
        let wanted: Vec<_> = self
            .relocations
            .iter()
            .flat_map(|list| list.iter())
            .filter_map(|relocation| self.hook_for(relocation, library, own))
            .collect();
        if wanted.is_empty() {
            return;
        }
        self.unsealed(|| {
            for (slot, hook) in wanted {
                // SAFETY: an aligned word of the object's table, in which the linker puts addresses of functions; writable now.
                unsafe { (*slot).store(hook as usize, Ordering::Release) };
            }
        });
    }

    /// Where the object has the address of a function that the hook should stand in for, and the hook.
    fn hook_for(
        &self,
        relocation: &Relocation,
        library: *mut c_void,
        own: Own,
    ) -> Option<(*const AtomicUsize, *mut c_void)> {
        let (kind, symbol) = (relocation.info as u32, (relocation.info >> 32) as usize);
        let takes_address = [R_GLOB_DAT, R_JUMP_SLOT, R_64].contains(&kind);
        if !takes_address || symbol == 0 || relocation.addend != 0 {
            return None;
        }
        // SAFETY: the index is of the object's own table of symbols, and the offset of its names.
        let (symbol, name) = unsafe {
            let symbol = &*self.symbols.add(symbol);
            (symbol, self.names.add(symbol.name as usize))
        };
        if symbol.section != 0 {
            return None;
        }
        let dlsym = native_dlsym();
        // SAFETY: handles that are open, and a string of the object's.
        let (hook, native, bound) =
            unsafe { (own.hook(name)?, dlsym(libc::RTLD_NEXT, name), dlsym(library, name)) };
        let slot = (self.base + relocation.offset as usize) as *const AtomicUsize;
        (bound == native && !native.is_null() && slot.is_aligned()).then_some((slot, hook))
    }

    fn unsealed(&self, change: impl FnOnce()) {
        let [begin, end] = [self.sealed.start, self.sealed.end].map(|at| at / PAGE * PAGE);
        let len = end - begin;
        // SAFETY: whole pages that the linker made read-only after loading; they are so again when the words are written.
        let protect =
            |rights| len == 0 || unsafe { libc::mprotect(begin as *mut _, len, rights) } == 0;
        if protect(libc::PROT_READ | libc::PROT_WRITE) {
            change();
            protect(libc::PROT_READ);
        }
    }
}

/// What the linker rounds to; of this architecture.
const PAGE: usize = 4096;
const DT_PLTRELSZ: usize = 2;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const DT_RELA: usize = 7;
const DT_RELASZ: usize = 8;
const DT_PLTREL: usize = 20;
const DT_JMPREL: usize = 23;
const R_64: u32 = 1;
const R_GLOB_DAT: u32 = 6;
const R_JUMP_SLOT: u32 = 7;
