/* P-256 keys: made in a millisecond. */
#include "harness/test.h"

#include "harness/certs.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#define DAY 86400L

struct test_ca {
    char      directory[200];
    EVP_PKEY *key;
    X509     *certificate;
    long      serial;
};

static EVP_PKEY *
new_key(void)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);
    EVP_PKEY     *key = NULL;

    if (ctx == NULL || EVP_PKEY_keygen_init(ctx) != 1 ||
        EVP_PKEY_CTX_set_ec_paramgen_curve_nid(ctx, NID_X9_62_prime256v1) != 1 ||
        EVP_PKEY_keygen(ctx, &key) != 1)
        key = NULL;
    EVP_PKEY_CTX_free(ctx);
    return key;
}

static bool
add_extension(X509 *certificate, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX      ctx;
    X509_EXTENSION *extension;
    bool            ok;

    X509V3_set_ctx(&ctx, issuer, certificate, NULL, NULL, 0);
    extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    ok        = extension != NULL && X509_add_ext(certificate, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return ok;
}

static FILE *
create(const char *directory, const char *name, const char *suffix)
{
    char path[300];
    int  fd;

    snprintf(path, sizeof(path), "%s/%s.%s", directory, name, suffix);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return fd < 0 ? NULL : fdopen(fd, "w");
}

static bool
write_files(const char *directory, const char *name, X509 *certificate, EVP_PKEY *key)
{
    FILE *crt = create(directory, name, "crt"), *pem = create(directory, name, "key");
    bool  ok = crt != NULL && pem != NULL && PEM_write_X509(crt, certificate) == 1 &&
              PEM_write_PrivateKey(pem, key, NULL, NULL, 0, NULL, NULL) == 1;

    if (crt != NULL)
        ok = fclose(crt) == 0 && ok;
    if (pem != NULL)
        ok = fclose(pem) == 0 && ok;
    return ok;
}

/* A certificate of `key`, signed by `ca`, or by itself when ca has none yet. */
static X509 *
certify(struct test_ca *ca, const char *name, EVP_PKEY *key, const char *names, int days)
{
    X509      *certificate = X509_new();
    X509      *issuer      = ca->certificate != NULL ? ca->certificate : certificate;
    X509_NAME *subject     = certificate != NULL ? X509_get_subject_name(certificate) : NULL;
    long       from        = days < 0 ? (days - 2) * DAY : -DAY;

    if (subject != NULL && X509_set_version(certificate, 2) == 1 &&
        ASN1_INTEGER_set(X509_get_serialNumber(certificate), ++ca->serial) == 1 &&
        X509_gmtime_adj(X509_getm_notBefore(certificate), from) != NULL &&
        X509_gmtime_adj(X509_getm_notAfter(certificate), days * DAY) != NULL &&
        X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0) ==
            1 &&
        X509_set_issuer_name(certificate, X509_get_subject_name(issuer)) == 1 &&
        X509_set_pubkey(certificate, key) == 1 &&
        (names == NULL ? add_extension(certificate, issuer, NID_basic_constraints, "critical,CA:TRUE")
                       : add_extension(certificate, issuer, NID_subject_alt_name, names)) &&
        X509_sign(certificate, ca->key, EVP_sha256()) > 0)
        return certificate;
    X509_free(certificate);
    return NULL;
}

static void
complain(const char *name)
{
    print_error("no certificate %s: %s\n", name, ERR_reason_error_string(ERR_peek_last_error()));
}

struct test_ca *
test_ca_new(const char *directory, const char *name)
{
    struct test_ca *ca = calloc(1, sizeof(*ca));

    if (ca == NULL)
        return NULL;
    snprintf(ca->directory, sizeof(ca->directory), "%s", directory);
    ca->key         = new_key();
    ca->certificate = ca->key != NULL ? certify(ca, name, ca->key, NULL, 10) : NULL;
    if (ca->certificate != NULL && write_files(directory, name, ca->certificate, ca->key))
        return ca;
    complain(name);
    test_ca_free(&ca);
    return NULL;
}

void
test_ca_free(struct test_ca **ca)
{
    struct test_ca *c = *ca;

    *ca = NULL;
    if (c == NULL)
        return;
    X509_free(c->certificate);
    EVP_PKEY_free(c->key);
    free(c);
}

bool
test_ca_issue(struct test_ca *ca, const char *name, const char *names, int days)
{
    EVP_PKEY *key         = new_key();
    X509     *certificate = key != NULL ? certify(ca, name, key, names, days) : NULL;
    bool      ok          = certificate != NULL && write_files(ca->directory, name, certificate, key);

    if (!ok)
        complain(name);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return ok;
}
