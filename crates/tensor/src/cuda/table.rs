//! Tables of foreign functions: each call gives a `Result`, and codes stay the integers that they are. Newer libraries have
//! codes that no enum of ours knows.

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {name} ({code})")]
pub struct CallError {
    /// The function.
    pub call: &'static str,
    /// What it gave.
    pub code: i32,
    /// The library's name of that.
    pub name: String,
}

/// Makes a table of functions that give 0 on success, as structure of that name:
///
/// ```ignore
/// functions! {
///     /// Its documentation.
///     pub struct Nccl, named by "ncclGetErrorString" {
///         /// What the function does.
///         get_version: "ncclGetVersion" (version: *mut i32);
///     }
/// }
/// ```
/// `Nccl::load(&Library)` takes all or names what is missing; `unsafe fn get_version(&self, version) -> Result<(), CallError>`
/// calls. `named by` is a function from a code to its name, `fn(i32) -> *const c_char`, or `fn(i32, *mut *const c_char)`
/// with `named into`.
#[macro_export]
macro_rules! functions {
    ($(#[$doc:meta])* pub struct $table:ident, named $how:tt $namer:literal {
        $($(#[$what:meta])* $method:ident: $symbol:literal ($($arg:ident: $type:ty),* $(,)?);)*
    }) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $table {
            library: $crate::cuda::Library,
            namer: *mut ::std::ffi::c_void,
            $($method: unsafe extern "C" fn($($type),*) -> i32,)*
        }

        // SAFETY: addresses of functions in a library that stays open.
        unsafe impl Send for $table {}
        // SAFETY: as above.
        unsafe impl Sync for $table {}

        impl $table {
            /// Finds all functions in a library.
            ///
            /// # Errors
            /// The first that it lacks.
            pub fn load(library: $crate::cuda::Library) -> Result<Self, String> {
                fn c(name: &'static str) -> &'static ::std::ffi::CStr {
                    ::std::ffi::CStr::from_bytes_with_nul(name.as_bytes()).expect("written with a zero")
                }
                let library = library.located_by(c(concat!($namer, "\0")));
                let namer = library.symbol(c(concat!($namer, "\0")))?;
                // SAFETY: the signatures are those of the library's headers.
                $(let $method = unsafe {
                    ::std::mem::transmute::<*mut ::std::ffi::c_void, unsafe extern "C" fn($($type),*) -> i32>(
                        library.symbol(c(concat!($symbol, "\0")))?
                    )
                };)*
                Ok(Self { library, namer, $($method),* })
            }

            /// The library they are in.
            pub fn library(&self) -> &$crate::cuda::Library {
                &self.library
            }

            /// The library's name of a code.
            pub fn name_of(&self, code: i32) -> String {
                let name = $crate::functions!(@name $how, self.namer, code);
                if name.is_null() {
                    return "a code without a name".to_owned();
                }
                // SAFETY: a string of the library, which ends with zero and stays.
                unsafe { ::std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned()
            }

            fn checked(&self, call: &'static str, code: i32) -> Result<(), $crate::cuda::CallError> {
                if code == 0 {
                    return Ok(());
                }
                Err($crate::cuda::CallError { call, code, name: self.name_of(code) })
            }

            $($(#[$what])*
            ///
            /// # Errors
            /// A code other than 0.
            ///
            /// # Safety
            /// As the library's manual says of its pointers and handles.
            pub unsafe fn $method(&self, $($arg: $type),*) -> Result<(), $crate::cuda::CallError> {
                // SAFETY: the caller's promise.
                let code = unsafe { (self.$method)($($arg),*) };
                self.checked($symbol, code)
            })*
        }

        impl ::std::fmt::Debug for $table {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, "{} of {}", stringify!($table), self.library.path().display())
            }
        }
    };
    (@name by, $namer:expr, $code:expr) => {{
        // SAFETY: the signature is that of the library's header.
        let namer = unsafe {
            ::std::mem::transmute::<*mut ::std::ffi::c_void, unsafe extern "C" fn(i32) -> *const ::std::ffi::c_char>($namer)
        };
        // SAFETY: any code may be asked for.
        unsafe { namer($code) }
    }};
    (@name into, $namer:expr, $code:expr) => {{
        let mut name = ::std::ptr::null();
        // SAFETY: the signature is that of the library's header.
        let namer = unsafe {
            ::std::mem::transmute::<
                *mut ::std::ffi::c_void,
                unsafe extern "C" fn(i32, *mut *const ::std::ffi::c_char) -> i32,
            >($namer)
        };
        // SAFETY: any code may be asked for; `name` outlives the call.
        let known = unsafe { namer($code, &raw mut name) } == 0;
        if known { name } else { ::std::ptr::null() }
    }};
}
