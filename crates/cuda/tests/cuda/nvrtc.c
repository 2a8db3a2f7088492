// Replaces NVRTC in tests. Its machine code is the start of the source, and a compilation writes a
// line to the file FAKE_LOG. MINOR, set when this is built, and FAKE_NEW_COMPILER, set when it
// runs, change the version.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef MINOR
#define MINOR 4
#endif

static const char LOG[] = "ptxas info    : Used 40 registers, 360 bytes cmem[0]";

const char* nvrtcGetErrorString(int status) { return "an error of the fake compiler"; }
int nvrtcVersion(int* major, int* minor) {
    return *major = getenv("FAKE_NEW_COMPILER") ? 13 : 12, *minor = MINOR, 0;
}
int nvrtcGetNumSupportedArchs(int* count) { return *count = 2, 0; }
int nvrtcGetSupportedArchs(int* archs) { return archs[0] = 75, archs[1] = 86, 0; }
int nvrtcCreateProgram(char** program, const char* source, const char* name, int headers,
                       const char* const* header_sources, const char* const* header_names) {
    char* made = malloc(64);
    snprintf(made, 64, "\x7f" "FAKE %.50s", source);
    return *program = made, 0;
}
int nvrtcDestroyProgram(char** program) { return free(*program), *program = NULL, 0; }
int nvrtcCompileProgram(char* program, int count, const char* const* options) {
    FILE* log = fopen(getenv("FAKE_LOG"), "a");
    fprintf(log, "compiled %s\n", options[0]);
    fclose(log);
    return getenv("FAKE_SYNTAX_ERROR") ? 6 : 0;
}
int nvrtcGetProgramLogSize(char* program, size_t* bytes) { return *bytes = sizeof LOG, 0; }
int nvrtcGetProgramLog(char* program, char* log) { return memcpy(log, LOG, sizeof LOG), 0; }
int nvrtcGetCUBINSize(char* program, size_t* bytes) { return *bytes = strlen(program) + 1, 0; }
int nvrtcGetCUBIN(char* program, char* cubin) { return strcpy(cubin, program), 0; }
int nvrtcGetPTXSize(char* program, size_t* bytes) { return 1; }
int nvrtcGetPTX(char* program, char* ptx) { return 1; }
